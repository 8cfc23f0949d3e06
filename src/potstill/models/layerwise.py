"""A model of which one block at a time is in memory, read from its safetensors files when it is needed.

Embedding, masks, positions, blocks and the last norm are transformers' own: the model's forward pass runs as it is,
with stand-ins for all blocks but one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor, nn

from potstill.errors import OUT_OF_SCOPE, ModelError
from potstill.models import anatomy, files, loading
from potstill.models.border import quiet
from potstill.types import Batch, Head

Work: TypeAlias = Callable[..., Tensor]
# Settings of models whose blocks read more than the hidden states that enter them.
_SHARING = ("num_kv_shared_layers", "hidden_size_per_layer_input")
PROBED = 64  # ids of the small model that shows what is done to logits


class Layerwise:
    """The parts of a model on disk, each loaded where it is asked for and dropped after it.

    Raises:
        ModelError: the model is quantised, its blocks share more than hidden states, or its files name its weights
            otherwise than its modules do.
    """

    def __init__(self, source: loading.Source, dtype: torch.dtype, device: torch.device) -> None:
        self._config = loading.load_config(source)
        text = self._config.get_text_config()
        name = source.location
        if getattr(self._config, "quantization_config", None) is not None:
            raise ModelError(f"{name} is quantised, and cannot be read block by block.", fix=OUT_OF_SCOPE)
        if shared := next((key for key in _SHARING if getattr(text, key, 0)), None):
            raise ModelError(
                f"the blocks of {name} read more than hidden states ({shared}), so they cannot be run one by one.",
                fix="Load it whole: teacher: {model: …}.",
            )
        self._name, self._device, self._dtype = name, device, dtype
        self._folder = loading.weights_folder(source)
        self._where = {tensor: file for file in files.weight_files(self._folder) for tensor in _names(file)}
        self._model = _empty(self._config, dtype, source.trust_remote_code)
        self._blocks = list(anatomy.layers(self._model))
        for buffer in self._model.buffers():
            buffer.data = buffer.to(device)
        backbone: Any = anatomy.backbone(self._model)
        self._backbone = backbone
        self._prefixes = {module: prefix for prefix, module in self._model.named_modules()}
        self._stands = [_Stand(block) for block in self._blocks]
        blocks = anatomy.layers(self._model)
        for number, stand in enumerate(self._stands):
            blocks[number] = stand
        self._embedding = backbone.get_input_embeddings()
        inside = {id(p) for module in (self._embedding, *self._blocks) for p in module.parameters()}
        frame = [name for name, p in backbone.named_parameters() if id(p) not in inside]
        self._assign(backbone, frame)

    @property
    def layers(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    @property
    def width(self) -> int:
        """Numbers in a position's hidden state."""
        return int(self._config.get_text_config().hidden_size)

    @contextmanager
    def embedding(self) -> Iterator[Callable[[Batch], Tensor]]:
        """With the embedding in memory: what enters the first block, [B, S, H]."""
        kept = dict(self._embedding.named_parameters())
        self._assign(self._embedding, kept)
        try:
            yield lambda batch: self._run(batch, 0, _stop, input_ids=batch.input_ids)
        finally:
            self._embedding.load_state_dict(kept, strict=False, assign=True)

    @contextmanager
    def block(self, index: int) -> Iterator[Callable[[Batch, Tensor], Tensor]]:
        """With one block in memory: what leaves it, given what enters it; behind the last one also normed."""
        prefix = self._prefixes[self._blocks[index]]
        block: Any = copy.deepcopy(self._blocks[index])
        self._assign(block, [name for name, _ in block.named_parameters()], prefix)
        last = index == self.layers - 1

        def run(batch: Batch, entering: Tensor) -> Tensor:
            def work(_: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                leaving = block(entering, *args, **kwargs)
                if not isinstance(leaving, Tensor):
                    raise ModelError(
                        f"the blocks of {self._name} give more than hidden states, so they cannot be run one by one.",
                        fix="Load it whole: teacher: {model: …}.",
                    )
                return leaving if last else _stop(leaving)

            return self._run(batch, index, work, inputs_embeds=entering)

        yield run

    def head(self, vocabulary: int) -> Head:
        """The head, with the scale and softcap that the model's code gives to logits."""
        layer = anatomy.output_layer(self._model)
        if type(layer) is not nn.Linear:
            raise ModelError(
                f"the head of {self._name} is a {type(layer).__name__}, which is not read block by block.",
                fix="Load it whole: teacher: {model: …}.",
            )
        prefix = self._prefixes[layer]
        weight = f"{prefix}.weight"
        if not self._stored(weight) and self._config.get_text_config().tie_word_embeddings:
            weight = f"{self._prefixes[self._embedding]}.weight"
        bias = None if layer.bias is None else self._read({f"{prefix}.bias": layer.bias.shape})
        shape = layer.weight.shape
        form = anatomy.head_form(_small(self._config))
        return Head(
            self._read({weight: shape})[weight],
            vocabulary,
            None if bias is None else bias[f"{prefix}.bias"],
            scale=form.scale,
            softcap=form.softcap,
        )

    @torch.no_grad()
    def _run(self, batch: Batch, index: int, work: Work, **inputs: Tensor) -> Tensor:
        """The model's own forward pass with `work` in the place of one block, up to there."""
        mask = None if batch.packed else batch.attention_mask
        stand = self._stands[index]
        stand.work = work
        try:
            states: Tensor = self._backbone(
                **inputs, attention_mask=mask, position_ids=batch.position_ids, use_cache=False
            ).last_hidden_state
            return states
        except _Stopped as stopped:
            return stopped.states
        finally:
            stand.work = None

    def _assign(self, module: Any, names: Iterable[str], prefix: str | None = None) -> None:
        """Read these parameters of a module from the files."""
        prefix = self._prefixes[module] if prefix is None else prefix
        parameters = dict(module.named_parameters())
        wanted = {f"{prefix}.{name}" if prefix else name: parameters[name].shape for name in names}
        read = self._read(wanted)
        start = len(prefix) + 1 if prefix else 0
        module.load_state_dict(
            {name[start:]: tensor for name, tensor in read.items()}, strict=False, assign=True
        )
        for parameter in module.parameters():
            parameter.requires_grad_(False)

    def _stored(self, name: str) -> str | None:
        """What the files call a parameter: its name in the model, or in the model without a head."""
        short = name.removeprefix(f"{self._model.base_model_prefix}.")
        return next((one for one in (name, short) if one in self._where), None)

    def _read(self, wanted: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Tensors by their names in the model. Files are closed again, so that their pages are free."""
        by_file: dict[Path, dict[str, str]] = {}
        for name in wanted:
            stored = self._stored(name)
            if stored is None:
                raise ModelError(
                    f"{self._folder} has no tensor {name}: its files name the weights otherwise than its modules do.",
                    fix="Load it whole, or save it again with transformers (save_pretrained).",
                )
            by_file.setdefault(self._where[stored], {})[name] = stored
        result = {}
        for file, names in by_file.items():
            with safe_open(file, "pt") as handle:
                for name, stored in names.items():
                    # A copy: what safetensors gives may be a view into the mapped file.
                    result[name] = handle.get_tensor(stored).to(self._device, self._dtype, copy=True)
        for name, shape in wanted.items():
            if result[name].shape != shape:
                raise ModelError(
                    f"{name} of {self._folder} has the shape {tuple(result[name].shape)}, and the config asks for "
                    f"{tuple(shape)}.",
                    fix="Download the model again.",
                )
        return result


class _Stopped(Exception):
    """Ends a forward pass behind the block that was run."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _stop(states: Tensor, *_: Any, **__: Any) -> Tensor:
    raise _Stopped(states)


class _Stand(nn.Module):
    """Stands where a block is not in memory: it passes on what enters, or does the work that it is given."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.work: Work | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # the model's code reads what kind of block it is
            return getattr(super().__getattr__("block"), name)

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return states if self.work is None else self.work(states, *args, **kwargs)


def _empty(config: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """The model with parameters on `meta` and computed buffers."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with quiet(), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.eval()


def _small(config: Any) -> Any:
    """A model of the same kind without blocks and with few ids: its code does the same to logits."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in (("num_hidden_layers", 0), ("layer_types", []), ("vocab_size", PROBED)):
        if hasattr(text, name):
            setattr(text, name, value)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as handle:
        return list(handle.keys())
