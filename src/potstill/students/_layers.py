"""Settings of single layers, which move with their layers, and the proof that a cut computes what its layers did."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models import anatomy

FIX = "Keep the first layers without a gap, or name a student of its own: student: {model: ...}."
POSITIONS = 24
TOLERANCE = 1e-3  # of the largest logit, in fp32
HALF_TOLERANCE = 3e-2  # where weights are quantised
WIDENED = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
NUMBERS_OF_LAYERS = re.compile(r"\w*(_only_layers|_indices|_indexes|_idxs)")
FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers")
NOT_OF_LAYERS = re.compile(r"_.*|architectures|\w*_token_ids?")
PLACE = re.compile(r"\w*(idx|index|layer_id|layer_number)\w*|training|_\w+")
BY_NUMBER = re.compile(r"\w*(layer_(idx|period|offset|freq)|interval|period|offset|frequency|_step)\w*")


def cut_config(model: Any, kept: Sequence[int]) -> Any:
    """The config of a model that has only the kept layers, with each layer's own settings. It is read back from
    what is stored of it, so that the student on disk is the student in memory."""
    depth, config = len(anatomy.layers(model)), copy.deepcopy(model.config)
    text = config.get_text_config()
    text.num_hidden_layers = len(kept)
    if hasattr(text, "decoder_sparse_step") and hasattr(text, "mlp_only_layers"):
        # The period cannot be cut; the list of layers says the same.
        text.mlp_only_layers = [
            layer
            for layer in range(depth)
            if layer in text.mlp_only_layers or (layer + 1) % text.decoder_sparse_step
        ]
        text.decoder_sparse_step = 1
    for name in FIRST_LAYERS:
        if isinstance(first := getattr(text, name, None), int):
            setattr(text, name, sum(layer < first for layer in kept))
    for name, value in list(vars(text).items()):
        if not isinstance(value, list | tuple) or NOT_OF_LAYERS.fullmatch(name):
            continue
        if NUMBERS_OF_LAYERS.fullmatch(name):
            setattr(text, name, [new for new, old in enumerate(kept) if old in value])
        elif len(value) == depth:
            setattr(text, name, [value[layer] for layer in kept])
    if hasattr(text, "attention_types") and hasattr(text, "attention_layers"):
        text.attention_types = [[text.attention_layers, 1]]
    again = type(config).from_dict(config.to_dict(), attn_implementation=config._attn_implementation)
    again.name_or_path = config.name_or_path
    return again


def move_scales(student: Any, kept: Sequence[int]) -> None:
    """Multiply queries so that a layer which divides its attention by its number divides by the old one."""
    if not getattr(student.config, "scale_attn_by_inverse_layer_idx", False):
        return
    for new, (old, block) in enumerate(zip(kept, anatomy.layers(student), strict=True)):
        attention: Any = block.attn
        joint, size = attention.c_attn, attention.embed_dim
        for tensor in (joint.weight, joint.bias):
            tensor.data[..., :size] *= (new + 1) / (old + 1)


@torch.no_grad()
def require_equal(model: Any, student: Any, kept: Sequence[int]) -> None:
    """Compare a cut with its teacher: each layer's settings, and logits while the other layers are bypassed.

    Raises:
        ModelError: they differ; names the settings that depend on a layer's number.
    """
    if settings := sorted(set(_changed(model, student, kept))):
        reason = f"a layer's {', '.join(settings)} would change with its place"
        raise ModelError(f"{refusal(model, kept)}: {reason}.", fix=FIX)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or POSITIONS
    rows = (2, min(POSITIONS, longest))
    ids = torch.randint(
        model.config.get_text_config().vocab_size, rows, generator=torch.Generator().manual_seed(0)
    )
    with bypassed(model, kept), _unrounded_constants(model, student, kept):
        expected = _logits(model, ids)
    logits = _logits(student, ids)
    worst, largest = float((logits - expected).abs().max()), float(expected.abs().max())
    limit = TOLERANCE if all(p.dtype in WIDENED for p in model.parameters()) else HALF_TOLERANCE
    if not worst <= limit * largest:
        reason = f"its logits differ by {worst:.3g} from the teacher's with the other layers bypassed"
        raise ModelError(f"{refusal(model, kept)}: {reason}.", fix=FIX)


def _logits(model: Any, ids: Tensor) -> Tensor:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with _widened(model):
            return model(input_ids=ids.to(device), use_cache=False).logits.float().cpu()
    finally:
        model.train(was_training)


def _changed(model: Any, student: Any, kept: Sequence[int]) -> Iterator[str]:
    """Names of plain values that a layer has in the student and did not have in the teacher."""
    moved = {"scaling"} if getattr(model.config, "scale_attn_by_inverse_layer_idx", False) else set()
    blocks = anatomy.layers(model)
    for old, block in zip(kept, anatomy.layers(student), strict=True):
        before = dict(blocks[old].named_modules())
        for name, module in block.named_modules():
            for key, value in vars(module).items():
                if not isinstance(value, int | float | str) or PLACE.fullmatch(key) or key in moved:
                    continue
                if vars(before[name]).get(key) != value:
                    yield key


@contextmanager
def bypassed(model: Any, kept: Sequence[int]) -> Iterator[None]:
    """Let every layer but the kept ones return what it was given."""

    def passes(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return given if isinstance(output, Tensor) else (given, *output[1:])

    handles = [
        block.register_forward_hook(passes, with_kwargs=True)
        for layer, block in enumerate(anatomy.layers(model))
        if layer not in kept
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unrounded_constants(model: nn.Module, student: nn.Module, kept: Sequence[int]) -> Iterator[None]:
    """Give a teacher in half precision the student's constants where its own are the same ones rounded: Gemma
    multiplies embeddings by a square root that it holds in the format of the weights, and a student's is fp32."""
    rounded = []
    for before, after in _pairs(model, student, kept):
        for name, own in before.named_buffers(recurse=False):
            exact = after.get_buffer(name).to(own.device)
            if own.dtype in (torch.bfloat16, torch.float16) and torch.equal(exact.to(own.dtype), own):
                rounded.append((before, name, own))
                before._buffers[name] = exact
    try:
        yield
    finally:
        for module, name, own in rounded:
            module._buffers[name] = own


def _pairs(
    model: nn.Module, student: nn.Module, kept: Sequence[int]
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Every module of a cut behind the teacher's that it was."""
    olds, news = anatomy.layers(model), anatomy.layers(student)
    within = {id(module) for module in news.modules()}
    around = [(name, module) for name, module in student.named_modules() if id(module) not in within]
    parts = [
        (model, around),
        *((olds[old], [*new.named_modules()]) for old, new in zip(kept, news, strict=True)),
    ]
    for part, modules in parts:
        before = dict(part.named_modules())
        yield from ((before[name], module) for name, module in modules)


@contextmanager
def _widened(model: nn.Module) -> Iterator[None]:
    """Compute in fp32 with the values that a model holds: half-precision sums of two devices, or of two shapes, lie
    far apart where layers are bypassed. A block's weights are widened while it runs, so that no second model exists."""
    if not all(parameter.dtype in WIDENED for parameter in model.parameters()):
        yield  # quantised weights cannot be
        return
    blocks = anatomy.layers(model)
    within = {id(parameter) for block in blocks for parameter in block.parameters()}
    running: dict[nn.Module, ExitStack] = {}

    def begin(block: nn.Module, _args: Any) -> None:
        running[block] = ExitStack()
        running[block].enter_context(_in_fp32(block.parameters()))

    def end(block: nn.Module, _args: Any, _output: Any) -> None:
        running.pop(block).close()

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(begin).remove)
            stack.callback(block.register_forward_hook(end).remove)
        stack.enter_context(_in_fp32(p for p in model.parameters() if id(p) not in within))
        try:
            yield
        finally:
            for left in running.values():
                left.close()


@contextmanager
def _in_fp32(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Widen half-precision parameters, and put their own tensors back."""
    halves = [(p, p.data) for p in parameters if p.dtype in (torch.bfloat16, torch.float16)]
    try:
        for parameter, data in halves:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in halves:
            parameter.data = data


def refusal(model: Any, kept: Sequence[int]) -> str:
    """What cannot be done, with the settings that depend on a layer's number."""
    text = vars(model.config.get_text_config())
    keys = sorted(key for key, value in text.items() if BY_NUMBER.fullmatch(key) and value)
    named = f" (its config has {', '.join(keys)})" if keys else ""
    return f"{type(model).__name__} cannot be cut to layers {list(kept)}{named}"
