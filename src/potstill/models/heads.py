"""Heads as callers give them: a model, an output layer, a weight matrix or a `Head`."""

from __future__ import annotations

import gc
from collections.abc import MutableMapping
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from potstill.errors import ModelError, SignalError
from potstill.models import anatomy
from potstill.models.anatomy import HeadForm
from potstill.types import Head

_forms: MutableMapping[nn.Module, HeadForm] = WeakKeyDictionary()
_plain: Any = WeakIdKeyDictionary()  # layers and weights of no model that changes its logits


def head_of(model: nn.Module, vocabulary: int | None = None) -> Head:
    """Read a model's head, with what the model does to its logits: softcap(scale * (h W' + b)).

    The first call for a model runs it once on four tokens. The head keeps no copy of the weights, but read it
    again after an adapter was added, merged or switched.

    Args:
        model: a causal language model of transformers, also inside PEFT's wrapper.
        vocabulary: ids that its tokenizer knows; all rows of the output layer without it.

    Raises:
        ModelError: it has no output layer, or changes its logits in a way that is not known here.
    """
    layer = anatomy.output_layer(model)
    if model not in _forms:
        _forms[model] = anatomy.head_form(model)
    return anatomy.head_of(model, vocabulary or _rows(layer), _forms[model])


def is_model(given: object) -> TypeGuard[nn.Module]:
    """Whether this is a whole language model, and not a part of one."""
    return isinstance(given, nn.Module) and hasattr(given, "get_output_embeddings")


def read(given: nn.Module | Tensor | Head) -> Head:
    """Read what stands for a head, with all its rows. A tensor that is no parameter is taken as it is.

    Raises:
        SignalError: a layer or weight of a model that changes its logits afterwards, or of unknown size.
        ModelError: as in `head_of`.
    """
    if isinstance(given, Head):
        return given
    if is_model(given):
        return head_of(given)
    if isinstance(given, nn.Module | nn.Parameter):
        _require_plain(given)
    return Head(given, len(given)) if isinstance(given, Tensor) else anatomy.read_head(given, _rows(given))


def _rows(layer: Any) -> int:
    # The weight of a quantised layer may be packed, and then its shape says nothing.
    rows, weight = getattr(layer, "out_features", None), getattr(layer, "weight", None)
    if rows is None and isinstance(weight, Tensor) and weight.ndim == 2:
        rows = weight.shape[0]
    if rows is None:
        raise SignalError(
            f"a {type(layer).__name__} does not say how many ids it knows.",
            fix="Pass the model, or a Head(None, vocabulary, module=layer).",
        )
    return int(rows)


def _require_plain(part: nn.Module | nn.Parameter) -> None:
    """Refuse a layer or weight whose model scales or caps what it computes."""
    if part in _plain:
        return
    for model in _models_of(part):
        try:
            changed = head_of(model)
        except ModelError as error:
            raise SignalError(
                f"the output layer belongs to a model that cannot be read: {error.message}", fix=error.fix
            ) from error
        if (changed.scale, changed.softcap) != (1.0, None):
            raise SignalError(
                f"a {type(model).__name__} changes its logits after the output layer "
                f"(scale {changed.scale:.4g}, softcap {changed.softcap}), and the layer alone does not.",
                fix="Pass the model itself, or potstill.head_of(model).",
            )
    _plain[part] = True


def _models_of(part: nn.Module | nn.Parameter) -> list[Any]:
    """The living models with this output layer or its weight: a layer does not know its model."""
    models = []
    for thing in gc.get_objects():
        # Not isinstance, which asks lazy objects for their class and wakes them.
        if issubclass(type(thing), nn.Module) and hasattr(thing, "get_output_embeddings"):
            layer = anatomy.unwrap(thing).get_output_embeddings()
            if layer is part or (layer is not None and getattr(layer, "weight", None) is part):
                models.append(thing)
    return models
