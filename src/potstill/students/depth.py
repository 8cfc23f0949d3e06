"""A student cut from its teacher in depth.

Block influence of layer l: 1 - E[cos(x_l, x_{l+1})] over real positions, where x_l enters the layer
and x_{l+1} leaves it (Men et al. 2024, ShortGPT, arXiv:2403.03853): layers that turn the stream
least go first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill.devices import exact
from potstill.errors import RecipeError
from potstill.models import anatomy, claims
from potstill.models.border import border
from potstill.students import _layers
from potstill.students._built import Built, StudentContext
from potstill.types import Batch

PATH = "student.from_teacher"  # where the recipe states the options


def build(
    context: StudentContext,
    *,
    keep_layers: int | None = None,
    by: Literal["block_influence", "uniform"] | tuple[int, ...] = "block_influence",
) -> Built:
    """Cut `keep_layers` layers out of the teacher: the most influential, evenly spread, or listed ones.

    Influence is measured on the context's calibration rows.

    Raises:
        RecipeError: a layer does not exist.
        ModelError: the teacher's weights are not finite, or its blocks cannot be cut.
    """
    loaded = _weights_of(context)()
    anatomy.head_form(loaded.model)  # refuses weights that are not finite before anything is cut
    total = len(anatomy.layers(loaded.model))
    count, influence = keep_layers or len(by), list[float]()
    if not isinstance(by, str):
        kept = list(by)
    elif by == "uniform":
        kept = uniform(total, count)
    else:
        influence = block_influence(loaded.model, context.batches("measuring block influence"))
        kept = most_influential(influence, count)
    student = cut(loaded.model, kept)
    teacher = {f"teacher_{name}": value for name, value in anatomy.sizes(loaded.model).items()}
    return Built(
        student, loaded.tokenizer, {"kept_layers": kept, "of": total, "influence": influence} | teacher
    )


def inputs(
    context: StudentContext,
    *,
    keep_layers: int | None = None,
    by: Literal["block_influence", "uniform"] | tuple[int, ...] = "block_influence",
) -> Any:
    """Return what identifies the cut besides its options: the teacher, and the rows that influence is measured
    on."""
    rows = context.calibration() if by == "block_influence" else []
    return [context.fingerprint, [row.input_ids for row in rows]]


def check(
    context: StudentContext,
    *,
    keep_layers: int | None = None,
    by: Literal["block_influence", "uniform"] | tuple[int, ...] = "block_influence",
) -> None:
    """Refuse a cut of a teacher without weights here, and one that it is too shallow for.

    Raises:
        RecipeError: says how many layers it has.
    """
    _weights_of(context)
    most = keep_layers or len(by) if isinstance(by, str) else max(by) + 1
    if context.layers is not None and most > context.layers:
        raise RecipeError(
            f"needs {most} layers, the teacher has {context.layers}.",
            path=PATH,
            fix=f"Keep 1 to {context.layers} layers, counted from 0.",
        )


def _weights_of(context: StudentContext) -> Callable[[], Any]:
    if context.teacher is None:
        raise RecipeError(
            "cuts the teacher, and its weights are not in this process.",
            path=PATH,
            fix="Name a student of its own: student: {model: ...}.",
        )
    return context.teacher


@torch.no_grad()
def block_influence(model: Any, batches: Iterable[Batch]) -> list[float]:
    """Block influence of every layer, averaged over the real positions of `batches`.

    Returns:
        one value a layer in [0, 2], the first layer first.
    """
    blocks = anatomy.layers(model)
    totals = torch.zeros(len(blocks), dtype=torch.float64)
    mask: Tensor = torch.empty(0)
    positions = 0

    def watch(index: int) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            leaving = output if isinstance(output, Tensor) else output[0]
            cosine = torch.cosine_similarity(inputs[0].float(), leaving.float(), dim=-1)
            totals[index] += exact.wide(1 - cosine[mask]).sum().cpu()

        return blocks[index].register_forward_hook(hook)

    handles = [watch(index) for index in range(len(blocks))]
    device = next(model.parameters()).device
    try:
        for batch in batches:
            batch = batch.to(device)
            mask = batch.attention_mask.bool()
            positions += int(mask.sum())
            anatomy.states_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return (totals / max(positions, 1)).tolist()


def uniform(depth: int, keep: int) -> list[int]:
    """`keep` layers spread evenly, the first and the last among them."""
    if keep == 1:
        return [0]
    return sorted({round(index * (depth - 1) / (keep - 1)) for index in range(keep)})


def most_influential(influence: Sequence[float], keep: int) -> list[int]:
    """The `keep` layers of highest influence, in their order."""
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return sorted(ranked[:keep])


def cut(model: Any, kept: Sequence[int]) -> Any:
    """A copy of the model with only these layers, with its own fp32 weights and a config that says so.

    Raises:
        RecipeError: a layer does not exist, or none is kept.
        ModelError: the layers cannot do in the student what they did in the teacher.
    """
    depth = len(anatomy.layers(model))
    if not kept or min(kept) < 0 or max(kept) >= depth or len(set(kept)) != len(kept):
        raise RecipeError(
            f"cannot keep layers {list(kept)} of {depth}.",
            path=PATH,
            fix=f"Name each layer once, from 0 to {depth - 1}.",
        )
    claims.require_trainable(model.config, model.config.name_or_path or type(model).__name__)
    with border(_layers.refusal(model, kept), _layers.FIX):
        student = type(model)(_layers.cut_config(model, kept)).float()
        student.load_state_dict(_kept_weights(model, kept), strict=True)
        student.tie_weights()
        _layers.move_scales(student, kept)
        if getattr(model, "generation_config", None) is not None:
            student.generation_config = copy.deepcopy(model.generation_config)
        _layers.require_equal(model, student.eval(), kept)
    return student


def _kept_weights(model: Any, kept: Sequence[int]) -> dict[str, Tensor]:
    """The weights in fp32, the kept layers under their new numbers."""
    position = {old: new for new, old in enumerate(kept)}
    prefix = _blocks_prefix(model)
    weights = {}
    for key, tensor in model.state_dict().items():
        if key.startswith(prefix):
            layer, _, rest = key[len(prefix) :].partition(".")
            if int(layer) not in position:
                continue
            key = f"{prefix}{position[int(layer)]}.{rest}"
        weights[key] = tensor.float() if tensor.is_floating_point() else tensor
    return weights


def _blocks_prefix(model: Any) -> str:
    blocks = anatomy.layers(model)
    return next(name for name, module in model.named_modules() if module is blocks) + "."
