"""Load and save causal language models.

Weights are read from safetensors or GGUF, never from pickles. A model that is not a decoder-only text model
is refused by name, and a missing weight is an error, never initialised at random.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.errors import OUT_OF_SCOPE, ModelError
from potstill.models.anatomy import output_layer, parameter_count
from potstill.models.source import Source as Source
from potstill.models.source import find_source as find_source
from potstill.models.vocabulary import read_vocabulary, require_width
from potstill.store.artifacts import file_hash, move_into_place, write_json

log = logging.getLogger("potstill")


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer."""

    model: Any
    tokenizer: Any


def fingerprint(source: Source) -> str:
    """Identify the weights: sha256 of the files, or of the hub id at its commit.

    Raises:
        ModelError: a hub model whose commit cannot be resolved.
    """
    if source.kind == "hub":
        return hashlib.sha256(f"{source.location}@{_commit(source)}".encode()).hexdigest()
    patterns = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
    folder_files = {file for pattern in patterns for file in source.path.glob(pattern)}
    digest = hashlib.sha256()
    for file in sorted(folder_files) if source.kind == "folder" else [source.path]:
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
        config = AutoConfig.from_pretrained(**_arguments(source))
    if problem := _out_of_scope(config, source.trust_remote_code):
        raise ModelError(f"{source.location} {problem}, not a decoder-only text model.", fix=OUT_OF_SCOPE)
    return config


def context_length(config: Any) -> int | None:
    """The most tokens that a model reads, None where its config does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def count_parameters(source: Source) -> int:
    """Count a model's parameters without reading its weights, tied ones once."""
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust_remote_code)
    return parameter_count(model)


def _out_of_scope(config: Any, trusted: bool) -> str:
    """Say what a model is instead of a decoder-only text model, or ""."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return f"is an encoder-decoder ({kind})"
    declared = getattr(config, "architectures", None) or []
    if declared and not any("CausalLM" in name or "LMHead" in name for name in declared):
        return f"is a {declared[0]}"
    # Encoders with a language head attend to later tokens unless their config says is_decoder.
    if hasattr(config, "is_decoder") and kind in ENCODERS and not config.is_decoder:
        return f"is an encoder ({kind} with is_decoder: false)"
    return "" if kind in CAUSAL or trusted else f"has the model type {kind}"


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer that belongs to the weights.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    source = _unpacked(source)
    with _reading(source, "tokenizer"):
        return AutoTokenizer.from_pretrained(**_arguments(source))


def load_model(source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """Load the weights in `dtype`, in evaluation mode.

    Raises:
        ModelError: the weights are missing or pickled, or lack a tensor that the config asks for.
    """
    load_config(source)
    source = _unpacked(source)
    if source.kind == "folder":
        _refuse_pickles(source.path)
    return _read_weights(source, dtype=dtype, use_safetensors=True).to(device).eval()


def _read_weights(source: Source, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with _reading(source):
        model, info = auto.from_pretrained(**_arguments(source), **options, output_loading_info=True)
    missing = [*sorted(info["missing_keys"]), *sorted(map(str, info["mismatched_keys"]))]
    if missing:
        raise ModelError(
            f"{source.location} lacks {len(missing)} of its tensors, first {missing[0]}.",
            fix="The files do not belong to this config; download or convert them again.",
        )
    return model


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code on load.",
            fix="Convert them to safetensors first.",
        )
    raise ModelError(f"{folder} holds no weights.", fix="It must have model.safetensors or its shards.")


def load(source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Loaded:
    """Load weights and tokenizer; refuse a head that is narrower than the tokenizer."""
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype=dtype, device=device)
    require_width(output_layer(model).weight.shape[0], read_vocabulary(tokenizer), source.location)
    return Loaded(model, tokenizer)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load without potstill."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _arguments(source: Source) -> dict[str, Any]:
    if source.kind == "gguf":
        return {"pretrained_model_name_or_path": str(source.path.parent), "gguf_file": source.path.name}
    return {
        "pretrained_model_name_or_path": source.location,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
    }


@contextmanager
def _reading(source: Source, what: str = "model") -> Iterator[None]:
    """Silence transformers, and report what it cannot read."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "Check the folder."
        if source.kind == "hub":
            fix = (
                "Check the name and the revision, and that this machine may reach the hub; "
                "potstill never replaces one model by another."
            )
        raise ModelError(f"cannot load the {what} {source.location}: {reason}", fix=fix) from error


def _unpacked(source: Source) -> Source:
    """Unpack a GGUF file once into a safetensors folder, and return the folder; else the source itself."""
    import transformers

    if source.kind != "gguf":
        return source
    digest = file_hash(source.path)
    cache = os.environ.get("POTSTILL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "potstill")
    target = Path(cache).expanduser() / "gguf" / f"{digest[:32]}-{transformers.__version__}"
    marker = target / "complete.json"
    if not marker.is_file():
        log.info("unpacking %s once", source.path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
        try:
            _unpack(source, temporary)
            write_json(temporary / marker.name, {"sha256": digest, "file": source.path.name})
            move_into_place(temporary, target)
        except OSError:
            # Another process may have been faster; its copy is as good.
            if not marker.is_file():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Source("folder", str(target))


def _unpack(source: Source, folder: Path) -> None:
    from transformers import AutoTokenizer, GgufConfig

    # Its bar writes carriage returns to standard error and has no switch.
    with contextlib.redirect_stderr(io.StringIO()):
        model = _read_weights(source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
        with _reading(source):
            tokenizer = AutoTokenizer.from_pretrained(**_arguments(source))
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    save(model, tokenizer, folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars and advice; errors still raise."""
    from transformers.utils import logging as their_logging

    level, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        their_logging.set_verbosity(level)
        if bars:
            their_logging.enable_progress_bar()


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 ones on this device."""
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16") or abilities.get("bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def best_device() -> torch.device:
    """Choose cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
