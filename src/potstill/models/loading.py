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
from potstill.models.vocabulary import Vocabulary, read_vocabulary, require_width
from potstill.store.artifacts import file_hash, move_into_place, write_json

log = logging.getLogger("potstill")


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, vocabulary and source."""

    model: Any
    tokenizer: Any
    vocabulary: Vocabulary
    source: Source


def fingerprint(source: Source) -> str:
    """Identify the weights: sha256 of the files, or of the hub id at its commit.

    Raises:
        ModelError: a hub model whose commit cannot be resolved.
    """
    if source.kind == "hub":
        return hashlib.sha256(f"{source.location}@{_commit(source)}".encode()).hexdigest()
    files = [source.path] if source.kind == "gguf" else _model_files(source.path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + bytes.fromhex(file_hash(file)))
    return digest.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    patterns = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def _commit(source: Source) -> str:
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        config = cached_file(source.location, "config.json", revision=source.revision)
    except OSError as error:
        raise _cannot_load(source, error) from error
    return extract_commit_hash(config, None) or source.revision or "unknown"


def load_config(source: Source) -> Any:
    """Load the config alone; refuse everything but decoder-only text models.

    Raises:
        ModelError: missing, unreadable or out of scope.
    """
    from transformers import AutoConfig

    with quiet():
        try:
            config = AutoConfig.from_pretrained(**_where(source))
        except (OSError, ValueError, KeyError) as error:
            raise _cannot_load(source, error) from error
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

    with quiet():
        try:
            if source.kind == "gguf":
                return AutoTokenizer.from_pretrained(_converted(source))
            return AutoTokenizer.from_pretrained(**_where(source))
        except (OSError, ValueError, KeyError) as error:
            raise _cannot_load(source, error, what="tokenizer") from error


def load_model(source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """Load the weights in `dtype`, in evaluation mode.

    Raises:
        ModelError: the weights are missing or pickled, or lack a tensor that the config asks for.
    """
    from transformers import AutoModelForCausalLM

    load_config(source)
    auto: Any = AutoModelForCausalLM
    where = _where(source)
    if source.kind == "gguf":
        where = {"pretrained_model_name_or_path": str(_converted(source))}
    elif source.kind == "folder":
        _refuse_pickles(source.path)
    with quiet():
        try:
            model, info = auto.from_pretrained(
                **where, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _cannot_load(source, error) from error
    _refuse_missing(source, model, info)
    return model.to(device).eval()


def _refuse_pickles(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if pickled:
            raise ModelError(
                f"{folder} holds only pickled weights ({pickled[0]}), which can run code on load.",
                fix="Convert them to safetensors first.",
            )
        raise ModelError(f"{folder} holds no weights.", fix="It must have model.safetensors or its shards.")


def _refuse_missing(source: Source, model: Any, info: dict[str, Any]) -> None:
    missing = sorted(info.get("missing_keys") or ())
    wrong = sorted(str(key) for key in info.get("mismatched_keys") or ())
    if missing or wrong:
        first = (missing or wrong)[0]
        raise ModelError(
            f"{source.location} lacks {len(missing) + len(wrong)} of its tensors, first {first}.",
            fix="The files do not belong to this config; download or convert them again.",
        )


def load(source: Source, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Loaded:
    """Load weights, tokenizer and vocabulary; refuse a head that is narrower than the tokenizer."""
    tokenizer = load_tokenizer(source)
    vocabulary = read_vocabulary(tokenizer)
    model = load_model(source, dtype=dtype, device=device)
    require_width(output_layer(model).weight.shape[0], vocabulary, source.location)
    return Loaded(model, tokenizer, vocabulary, source)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load without potstill."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _where(source: Source) -> dict[str, Any]:
    if source.kind == "gguf":
        return {"pretrained_model_name_or_path": str(source.path.parent), "gguf_file": source.path.name}
    return {
        "pretrained_model_name_or_path": source.location,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
    }


def _cannot_load(source: Source, error: Exception, what: str = "model") -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    fix = "Check the folder."
    if source.kind == "hub":
        fix = (
            "Check the name and the revision, and that this machine may reach the hub; "
            "potstill never replaces one model by another."
        )
    return ModelError(f"cannot load the {what} {source.location}: {reason}", fix=fix)


def cache_folder() -> Path:
    """The folder of converted files: $POTSTILL_CACHE, else potstill's part of the user's cache."""
    folder = os.environ.get("POTSTILL_CACHE")
    return Path(folder or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "potstill")).expanduser()


def _converted(source: Source) -> Path:
    """Unpack a GGUF file once into a safetensors folder, and return the folder."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    auto: Any = AutoModelForCausalLM
    digest = file_hash(source.path)
    target = cache_folder() / "gguf" / f"{digest[:32]}-{transformers.__version__}"
    if (target / "complete.json").is_file():
        return target
    log.info("unpacking %s once", source.path.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        # Its bar writes carriage returns to standard error and has no switch.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            try:
                model, info = auto.from_pretrained(
                    **_where(source),
                    quantization_config=GgufConfig(dequantize=True),
                    dtype=torch.float32,
                    output_loading_info=True,
                )
                tokenizer = AutoTokenizer.from_pretrained(**_where(source))
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise _cannot_load(source, error) from error
        _refuse_missing(source, model, info)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        save(model, tokenizer, temporary)
        write_json(temporary / "complete.json", {"sha256": digest, "file": source.path.name})
        try:
            move_into_place(temporary, target)
        except OSError:  # another process was faster; its copy is as good
            if not (target / "complete.json").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


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
