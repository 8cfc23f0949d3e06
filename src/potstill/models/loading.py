"""Load and save causal language models.

Weights are read from safetensors or GGUF, never from pickles. A model that is not a decoder-only text model
is refused by name; a missing weight is an error, never initialised at random, and so is one that nobody reads.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.devices import placement
from potstill.errors import OUT_OF_SCOPE, ModelError
from potstill.models import claims, files, gguf
from potstill.models.anatomy import output_layer, parameter_count
from potstill.models.products import fast_bf16 as fast_bf16
from potstill.models.reading import (
    arguments,
    compare_claims,
    file_of,
    read_settings,
    reading,
    settings_of,
    stored_shapes,
)
from potstill.models.source import Source as Source
from potstill.models.source import find_source as find_source
from potstill.models.unpacked import unpacked
from potstill.models.vocabulary import read_vocabulary, require_width
from potstill.models.weights import read_weights
from potstill.models.weights import save as save
from potstill.store.disk import file_hash

FORMATS = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as files name them


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer."""

    model: Any
    tokenizer: Any


def fingerprint(source: Source) -> str:
    """Identify the weights: sha256 of the files, or of the hub id at its commit.

    Raises:
        ModelError: a hub model whose commit cannot be resolved, or files that cannot be loaded.
    """
    if source.kind == "hub":
        return hashlib.sha256(f"{source.location}@{_commit(source)}".encode()).hexdigest()
    digest = hashlib.sha256()
    with reading(source):
        for file in files.folder_files(source.path) if source.kind == "folder" else [source.path]:
            digest.update(file.name.encode() + bytes.fromhex(file_hash(file)))
    return digest.hexdigest()


def _commit(source: Source) -> str:
    from transformers.utils.hub import cached_file, extract_commit_hash

    with reading(source):
        config = cached_file(source.location, "config.json", revision=source.revision)
    return extract_commit_hash(config, None) or source.revision or "unknown"


def load_config(source: Source) -> Any:
    """Load the config alone; refuse everything but decoder-only text models.

    Raises:
        ModelError: missing, unreadable or out of scope.
    """
    from transformers import AutoConfig

    with reading(source):
        compare_claims(source)
        config = AutoConfig.from_pretrained(**arguments(source))
        if source.kind == "gguf":
            claims.require_possible(config.to_dict(), stored_shapes(source), source.location)
        claims.require_readable_numbers(config, source.location)
        problem = claims.out_of_scope(config, source.trust_remote_code)
    if problem:
        raise ModelError(f"{source.location} {problem}, not a decoder-only text model.", fix=OUT_OF_SCOPE)
    return config


def number_format(source: Source) -> str:
    """The number format of most stored weights: float32, bfloat16 or float16.

    Packed weights (GGUF's Q4_1, int8, fp8) count as bfloat16, in which they are unpacked and trained. Of a model
    on the hub its config is asked, and nothing is downloaded for it.

    Raises:
        ModelError: the files cannot be read.
    """
    if source.kind == "hub":
        config = read_settings(source, files.CONFIG)
        parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
        stated = [part.get(key) for part in parts for key in ("dtype", "torch_dtype") if part.get(key)]
        packed = "quantization_config" in config
        return (
            "bfloat16"
            if packed
            else str(stated[0])
            if stated and stated[0] in FORMATS.values()
            else "float32"
        )
    with reading(source):
        count = files.numbers if source.kind == "folder" else gguf.numbers
        ((most, _),) = count(source.path).most_common(1)
    return FORMATS.get(most, "bfloat16")


def context_length(config: Any) -> int | None:
    """The most tokens that a model reads, None where its config does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def width(config: Any) -> int | None:
    """How many ids a model can write, None where its config does not say."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return None if size is None else int(size)


def hidden_width(config: Any) -> int | None:
    """How many values of a position the output layer reads, None where the config does not say."""
    text = config.get_text_config()
    size = getattr(text, "word_embed_proj_dim", None) or getattr(text, "hidden_size", None)
    return None if size is None else int(size)


def count_parameters(source: Source) -> int:
    """Count a model's parameters without reading its weights, tied ones once.

    Raises:
        ModelError: no model can be built from the config, or one far larger than the files.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    with reading(source), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    count = parameter_count(model)
    if (stored := stored_shapes(source)) is not None:
        numbers, packed = sum(map(math.prod, stored.values())), claims.quantization(config) is not None
        claims.require_fitting(count, numbers, packed, source.location)
    return count


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer that belongs to the weights.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    source = unpacked(source)
    with reading(source, "tokenizer"):
        compare_claims(source)
        settings_of(source, files.TOKENIZER_CONFIG)
        claims.require_dense(settings_of(source, files.TOKENIZER), source.location)
        tokenizer = AutoTokenizer.from_pretrained(**arguments(source))
        claims.require_own_unknown(tokenizer, source.location)
        read_vocabulary(tokenizer)  # asks for all that is asked later
        return tokenizer


def load_model(source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """Load the weights in `dtype`, in evaluation mode.

    A process that loads them onto a GPU leaves cuDNN's attention out, whichever command or worker it is.

    Raises:
        ModelError: the weights are missing or pickled, or lack a tensor that the config asks for.
    """
    if torch.device(device).type == "cuda":
        placement.leave_out_planned_attention()
    if stored_shapes(source) is None:
        load_config(source)
    else:
        count_parameters(source)
    source = unpacked(source)
    if source.kind == "folder":
        files.weight_files(source.path)
    else:
        with reading(source):
            if index := file_of(source, files.INDEX):
                files.shard_names(index)
    return read_weights(source, dtype=dtype, use_safetensors=True).to(device).eval()


def weights_folder(source: Source) -> Path:
    """The folder with a model's safetensors files, which are downloaded or unpacked where they are not here yet.

    Raises:
        ModelError: they are missing or cannot be read.
    """
    source = unpacked(source)
    if source.kind == "folder":
        return source.path
    with reading(source):
        index = file_of(source, files.INDEX)
        names = [files.SINGLE] if index is None else files.shard_names(index)
        found = [file_of(source, name) for name in names]
    if missing := [name for name, file in zip(names, found, strict=True) if file is None]:
        raise ModelError(
            f"{source.location} has no {missing[0]}.", fix="Name a model with safetensors files."
        )
    return Path(str(found[0])).parent


def load(source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Loaded:
    """Load weights and tokenizer; refuse a head that is narrower than the tokenizer."""
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype=dtype, device=device)
    require_width(output_layer(model).weight.shape[0], read_vocabulary(tokenizer), source.location)
    return Loaded(model, tokenizer)


def best_device() -> torch.device:
    """Choose cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
