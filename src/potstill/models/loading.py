"""Load and save causal language models.

Weights are read from safetensors or GGUF, never from pickles. A model that is not a decoder-only text model
is refused by name; a missing weight is an error, never initialised at random, and so is one that nobody reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from potstill.errors import OUT_OF_SCOPE, ModelError
from potstill.models import claims, files, gguf, hub
from potstill.models.anatomy import output_layer, parameter_count
from potstill.models.border import border
from potstill.models.products import fast_bf16 as fast_bf16
from potstill.models.source import Source as Source
from potstill.models.source import find_source as find_source
from potstill.models.vocabulary import read_vocabulary, require_width
from potstill.store import unpacking
from potstill.store.disk import file_hash, move_into_place, write_json

log = logging.getLogger("potstill")

FORMATS = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as files name them
UNPACKED = 2  # raised when what is kept of a GGUF file changes its meaning


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
    with _reading(source):
        for file in files.folder_files(source.path) if source.kind == "folder" else [source.path]:
            digest.update(file.name.encode() + bytes.fromhex(file_hash(file)))
    return digest.hexdigest()


def _commit(source: Source) -> str:
    from transformers.utils.hub import cached_file, extract_commit_hash

    with _reading(source):
        config = cached_file(source.location, "config.json", revision=source.revision)
    return extract_commit_hash(config, None) or source.revision or "unknown"


def load_config(source: Source) -> Any:
    """Load the config alone; refuse everything but decoder-only text models.

    Raises:
        ModelError: missing, unreadable or out of scope.
    """
    from transformers import AutoConfig

    with _reading(source):
        _compare_claims(source)
        config = AutoConfig.from_pretrained(**_arguments(source))
        if source.kind == "gguf":
            claims.require_possible(config.to_dict(), _stored(source), source.location)
        claims.require_readable_numbers(config, source.location)
        problem = claims.out_of_scope(config, source.trust_remote_code)
    if problem:
        raise ModelError(f"{source.location} {problem}, not a decoder-only text model.", fix=OUT_OF_SCOPE)
    return config


def read_settings(source: Source, name: str) -> dict[str, Any]:
    """A settings file of the model as it stands, {} where there is none.

    Raises:
        ModelError: it is no JSON object.
    """
    with _reading(source):
        return _settings(source, name)


def _compare_claims(source: Source) -> None:
    """Refuse what the settings claim and the files cannot hold, before anything is built from them."""
    config = _settings(source, files.CONFIG)
    if _file(source, files.ADAPTER) is not None:
        raise ModelError(
            f"{source.location} holds an adapter ({files.ADAPTER}){' beside a full model' if config else ''}.",
            fix="Merge the adapter into its model (merge_and_unload of peft) and save that, or take it out.",
        )
    if named := config.get("transformers_weights"):
        raise ModelError(
            f"the config of {source.location} reads its weights from another file ({named}).",
            fix=f"Name the file {files.SINGLE}, and remove transformers_weights from {files.CONFIG}.",
        )
    if source.kind != "gguf":  # its config is made by a library
        claims.require_possible(config, _stored(source), source.location)


def _settings(source: Source, name: str) -> dict[str, Any]:
    """A settings file as it stands, {} where there is none; code of others that it names is refused if it may run."""
    file = _file(source, name)
    content = {} if file is None else files.read_json(file)
    if source.trust_remote_code:
        claims.require_own_code(content, source.location)
    return content


def _file(source: Source, name: str) -> Path | None:
    """A file of the model; None where the model has none."""
    if source.kind == "hub":
        return _hub_file(source.location, source.revision, name)
    return source.path / name if source.kind == "folder" and (source.path / name).is_file() else None


@cache  # each question may cost a request
def _hub_file(location: str, revision: str | None, name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    path = cached_file(location, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


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
    with _reading(source):
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


def count_parameters(source: Source) -> int:
    """Count a model's parameters without reading its weights, tied ones once.

    Raises:
        ModelError: no model can be built from the config, or one far larger than the files.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    with _reading(source), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    count = parameter_count(model)
    if (stored := _stored(source)) is not None:
        numbers, packed = sum(map(math.prod, stored.values())), claims.quantization(config) is not None
        claims.require_fitting(count, numbers, packed, source.location)
    return count


def _stored(source: Source) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the stored tensors, None where they are not here yet."""
    if source.kind == "gguf":
        return gguf.tensors(source.path)
    if source.kind == "folder" and (_file(source, files.SINGLE) or _file(source, files.INDEX)):
        return files.tensors(source.path)
    return None


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer that belongs to the weights.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    source = _unpacked(source)
    with _reading(source, "tokenizer"):
        _compare_claims(source)
        _settings(source, files.TOKENIZER_CONFIG)
        claims.require_dense(_settings(source, files.TOKENIZER), source.location)
        tokenizer = AutoTokenizer.from_pretrained(**_arguments(source))
        claims.require_own_unknown(tokenizer, source.location)
        read_vocabulary(tokenizer)  # asks for all that is asked later
        return tokenizer


def load_model(source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """Load the weights in `dtype`, in evaluation mode.

    Raises:
        ModelError: the weights are missing or pickled, or lack a tensor that the config asks for.
    """
    if _stored(source) is None:
        load_config(source)
    else:
        count_parameters(source)
    source = _unpacked(source)
    if source.kind == "folder":
        files.weight_files(source.path)
    else:
        with _reading(source):
            if index := _file(source, files.INDEX):
                files.shard_names(index)
    return _read_weights(source, dtype=dtype, use_safetensors=True).to(device).eval()


def weights_folder(source: Source) -> Path:
    """The folder with a model's safetensors files, which are downloaded or unpacked where they are not here yet.

    Raises:
        ModelError: they are missing or cannot be read.
    """
    source = _unpacked(source)
    if source.kind == "folder":
        return source.path
    with _reading(source):
        index = _file(source, files.INDEX)
        names = [files.SINGLE] if index is None else files.shard_names(index)
        found = [_file(source, name) for name in names]
    if missing := [name for name, file in zip(names, found, strict=True) if file is None]:
        raise ModelError(
            f"{source.location} has no {missing[0]}.", fix="Name a model with safetensors files."
        )
    return Path(str(found[0])).parent


def _read_weights(source: Source, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with _reading(source):
        model, info = auto.from_pretrained(
            **_arguments(source), **options, output_loading_info=True, ignore_mismatched_sizes=True
        )
    claims.require_all(model, info, source.location)
    claims.say_what_is_tied(model)
    return model


def load(source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Loaded:
    """Load weights and tokenizer; refuse a head that is narrower than the tokenizer."""
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype=dtype, device=device)
    require_width(output_layer(model).weight.shape[0], read_vocabulary(tokenizer), source.location)
    return Loaded(model, tokenizer)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load without potstill."""
    from transformers import GenerationConfig

    fix = "Use another model, or open an issue that names it."
    with border(f"cannot save the model to {folder}", fix, passes=OSError):
        claims.say_what_is_tied(model)
        generation = getattr(model, "generation_config", None)
        try:
            if generation is not None:  # it may hold what its own library reads and refuses to write
                model.generation_config = GenerationConfig()
            model.save_pretrained(folder)
        finally:
            if generation is not None:
                model.generation_config = generation
        if generation is not None:
            generation.to_json_file(folder / "generation_config.json")
        tokenizer.save_pretrained(folder)


def _arguments(source: Source) -> dict[str, Any]:
    if source.kind == "gguf":
        # Absolute: transformers looks into the working directory first.
        path = source.path.absolute()
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": str(path)}
    return {
        "pretrained_model_name_or_path": source.location,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
    }


@contextmanager
def _reading(source: Source, what: str = "model") -> Iterator[None]:
    """Report what cannot be read of a model, whatever the reason."""
    if source.kind == "hub":
        with _reading_from_hub(source, what):
            yield
        return
    with border(f"cannot load the {what} {source.location}", "Check the folder."):
        if source.kind == "folder":
            files.require_regular(source.path)
        else:
            files.require_content(source.path)
        yield


@contextmanager
def _reading_from_hub(source: Source, what: str) -> Iterator[None]:
    action = f"cannot load the {what} {source.location}"
    fix = (
        "Check the name and the revision, and that this machine may reach the hub; "
        "potstill never replaces one model by another."
    )
    with hub.within_reach() as why:
        try:
            with border(action, fix):
                yield
        except ModelError as error:
            if not why or error.__cause__ is None:  # what potstill itself refuses has no cause
                raise
            raise ModelError(
                f"{action}: the hub cannot be reached ({why}), and the cache does not hold all of it.",
                fix="Connect this machine to the network, or name a local folder.",
            ) from error


def _unpacked(source: Source) -> Source:
    """Unpack a GGUF file once into a safetensors folder, and return the folder; else the source itself."""
    import transformers

    if source.kind != "gguf":
        return source
    digest = file_hash(source.path)
    target = unpacking.gguf_folder() / f"{digest[:32]}-{transformers.__version__}-{UNPACKED}"
    marker = target / "complete.json"
    if not marker.is_file():
        log.info("unpacking %s once", source.path.name)
        with unpacking.begun() as temporary:
            try:
                _unpack(source, temporary)
                write_json(temporary / marker.name, {"sha256": digest, "file": source.path.name})
                (temporary / unpacking.LOCK).unlink()
                move_into_place(temporary, target)
            except OSError:
                # Another process may have been faster; its copy is as good.
                if not marker.is_file():
                    raise
    return Source("folder", str(target))


def _unpack(source: Source, folder: Path) -> None:
    from transformers import AutoTokenizer, GgufConfig

    # Its bar writes carriage returns to standard error and has no switch.
    with contextlib.redirect_stderr(io.StringIO()):
        model = _read_weights(source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
        with _reading(source):
            gguf.require_all_read(source.path, model)
            tokenizer = AutoTokenizer.from_pretrained(**_arguments(source))
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    save(model, tokenizer, folder)


def best_device() -> torch.device:
    """Choose cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
