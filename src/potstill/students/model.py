"""A student from another model's weights."""

from __future__ import annotations

from typing import Any

import torch

from potstill.models import claims, generation, loading
from potstill.models import licence as licences
from potstill.students._built import Built, Reads, StudentContext


def build(
    context: StudentContext, *, model: str, revision: str | None = None, trust_remote_code: bool = False
) -> Built:
    """Load a hub id, a folder, a GGUF file or package:NAME/FILE in fp32.

    Raises:
        ModelError: the model does not exist, cannot be read or is out of scope.
    """
    source = _source(context, model, revision, trust_remote_code)
    claims.require_trainable(loading.load_config(source), source.location)
    loaded = loading.load(source, dtype=torch.float32)
    return Built(loaded.model, loaded.tokenizer)


def inputs(
    context: StudentContext, *, model: str, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Return what identifies the model: its files' hash, or its hub id at a commit."""
    return loading.fingerprint(_source(context, model, revision, trust_remote_code))


def reads(
    context: StudentContext, *, model: str, revision: str | None = None, trust_remote_code: bool = False
) -> Reads:
    """Return the model's own tokenizer and context length."""
    source = _source(context, model, revision, trust_remote_code)
    config = loading.load_config(source)
    claims.require_trainable(config, source.location)
    ends = generation.end_ids(source, loading.width(config))
    tokenizer, length = loading.load_tokenizer(source), loading.context_length(config)
    return Reads(tokenizer, length, ends, loading.hidden_width(config))


def config(
    context: StudentContext, *, model: str, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Return the model's config."""
    return loading.load_config(_source(context, model, revision, trust_remote_code))


def parameters(
    context: StudentContext, *, model: str, revision: str | None = None, trust_remote_code: bool = False
) -> int:
    """Count the model's parameters without reading its weights."""
    return loading.count_parameters(_source(context, model, revision, trust_remote_code))


def licence(
    context: StudentContext, *, model: str, revision: str | None = None, trust_remote_code: bool = False
) -> str:
    """What the model's files say of its licence, "" where they say nothing."""
    return licences.licence(_source(context, model, revision, trust_remote_code))


def _source(
    context: StudentContext, model: str, revision: str | None, trust_remote_code: bool
) -> loading.Source:
    return loading.find_source(
        model, base=context.base, revision=revision, trust_remote_code=trust_remote_code
    )
