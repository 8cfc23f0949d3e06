"""What a model's configuration claims, compared with its files before anything is built from it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from typing import Any

from potstill.errors import ModelError

# Packages whose name is not the method's.
PACKAGES = {
    "awq": "gptqmodel", "gptq": "gptqmodel", "quanto": "optimum-quanto", "fp_quant": "fp-quant",
    "auto-round": "auto-round", "spqr": "spqr_quant", "quark": "amd-quark", "higgs": "flute-kernel",
    "mxfp4": "kernels", "fbgemm_fp8": "fbgemm-gpu", "fp8": "", "bitnet": "", "mxfp8": "",
}  # fmt: skip
MODULES = {"optimum-quanto": "optimum", "amd-quark": "quark", "flute-kernel": "flute"}
LAYERS = re.compile(r"(num|n)_(\w+_)?layers?")
SIZES = re.compile(r"(num|n)_\w+|\w+_(size|dim)")
SHARES = re.compile(r"(\w+_)?(dropout|pdrop)")
LARGEST_SIZE = 2_000_000  # what no config needs where its files hold no such dimension
MOST_LAYERS = 10_000  # where the files are not here yet
MOST_PACKED, MOST_REPEATED, SMALL = 64, 2, 1_000_000


def require_possible(
    config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]] | None, who: str
) -> None:
    """Refuse counts and sizes that the stored tensors cannot have; building them would take hours or all memory.

    Args:
        config: config.json as it stands in the file.
        tensors: shapes of the stored tensors, None where they are not known yet.

    Raises:
        ModelError: names the key.
    """
    most_layers = MOST_LAYERS if tensors is None else len(tensors)
    largest = max((size for shape in (tensors or {}).values() for size in shape), default=0)
    largest = max(largest, LARGEST_SIZE)
    for key, value in _numbers(config):
        if SHARES.fullmatch(key) and not 0 <= value <= 1:
            raise ModelError(
                f"the config of {who} says {key}: {value}, which is no share.",
                fix="Write a number from 0 to 1.",
            )
        if not isinstance(value, int):
            continue
        most = most_layers if LAYERS.fullmatch(key) else largest if SIZES.fullmatch(key) else value
        if value > most:
            stored = "" if tensors is None else f", and its files hold {len(tensors)} tensors"
            raise ModelError(
                f"the config of {who} says {key}: {value}{stored}.",
                fix="The config does not belong to these files; download the model again.",
            )


def _numbers(value: Any) -> Iterator[tuple[str, float]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _numbers(inner)
        elif isinstance(inner, int | float) and not isinstance(inner, bool):
            yield key, inner


def require_fitting(parameters: int, numbers: int, packed: bool, who: str) -> None:
    """Refuse a config whose model is far larger than its files; building it would take all memory.

    Args:
        parameters: what the model of the config has.
        numbers: what the files hold.
        packed: whether one stored number may stand for several.

    Raises:
        ModelError: says both.
    """
    if parameters > numbers * (MOST_PACKED if packed else MOST_REPEATED) + SMALL:
        raise ModelError(
            f"the config of {who} describes a model of {parameters:,} parameters, and its files hold {numbers:,} "
            "numbers.",
            fix="The config does not belong to these files; download the model again.",
        )


def require_dense(tokenizer: Mapping[str, Any], who: str) -> None:
    """Refuse a tokenizer.json whose largest id is far beyond its number of tokens: tables of that length are built.

    Raises:
        ModelError: names the id.
    """
    entries = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = list(entries.values()) if isinstance(entries, Mapping) else [len(entries)]
    ids += [token["id"] for token in tokenizer.get("added_tokens") or []]
    largest = max(ids, default=0)
    if largest > len(ids) + len(entries) + LARGEST_SIZE:
        raise ModelError(
            f"the tokenizer of {who} gives a token the id {largest}, and it has {len(ids)} tokens.",
            fix="Use the tokenizer that belongs to these weights.",
        )


def require_own_unknown(tokenizer: Any, who: str) -> None:
    """Refuse a token for unknown words that is unknown itself: libraries look it up without end.

    Raises:
        ModelError: names the token.
    """
    unknown = tokenizer.unk_token
    if unknown is not None and str(unknown) not in tokenizer.get_vocab():
        raise ModelError(
            f"the tokenizer of {who} writes unknown words as {str(unknown)!r}, which is none of its tokens.",
            fix="Correct unk_token in its tokenizer_config.json.",
        )


def require_own_code(settings: Mapping[str, Any], who: str) -> None:
    """Refuse an auto_map that names another repository, whose code nobody pinned.

    Raises:
        ModelError: names the repository.
    """
    for repository in _repositories(settings.get("auto_map")):
        if repository != who:
            raise ModelError(
                f"the model's own code of {who} comes from another repository, {repository}, "
                "at no commit that the recipe pins.",
                fix=f"Copy the code from {repository} beside the model, and the names in auto_map without it.",
            )


def _repositories(value: Any) -> Iterator[str]:
    if isinstance(value, str) and "--" in value:
        yield value.split("--")[0]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for entry in inner:
        yield from _repositories(entry)


def require_readable_numbers(config: Any, who: str) -> None:
    """Refuse quantised weights where the package that reads them is not installed.

    Raises:
        ModelError: names the method and the package.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as METHODS

    method = quantization(config)
    if method is None:
        return
    package = PACKAGES.get(method, method)
    module = MODULES.get(package, package).replace("-", "_")
    fix = "Name the model's full-precision weights."
    if method not in (*METHODS, "bitsandbytes"):
        raise ModelError(f"the weights of {who} are quantised with {method}, which is not known.", fix=fix)
    if package and importlib.util.find_spec(module) is None:
        raise ModelError(
            f"the weights of {who} are quantised with {method}, and the package {package} is not installed.",
            fix=f"Run: pip install {package}. Or name the model's full-precision weights.",
        )


def require_trainable(config: Any, who: str) -> None:
    """Refuse quantised weights of a student: packed integers cannot be trained.

    Raises:
        ModelError: names the method.
    """
    if method := quantization(config):
        raise ModelError(
            f"the weights of {who} are quantised with {method}, and packed numbers cannot be trained.",
            fix="Name the model's full-precision weights for the student.",
        )


def quantization(config: Any) -> str | None:
    """The method that a model's weights are quantised with, None for plain ones."""
    settings = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        settings = settings.to_dict()
    method = settings.get("quant_method")
    if method is None:
        eight_or_four = settings.get("load_in_8bit") or settings.get("load_in_4bit")
        return "bitsandbytes" if eight_or_four else "an unnamed method"
    return str(getattr(method, "value", method))


def require_all(model: Any, info: dict[str, Any], who: str) -> None:
    """Require that the files hold exactly the tensors that the model has.

    Args:
        info: what transformers says about a load.

    Raises:
        ModelError: names the first tensor that is missing, of another shape, or without a place.
    """
    fix = "The files do not belong to this config; download or convert them again."
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{who} lacks {len(missing)} of its tensors, first {missing[0]}.", fix=fix)
    if other := sorted(info["mismatched_keys"]):
        name, stored, wanted = other[0]
        raise ModelError(
            f"{who} has {len(other)} tensors of another shape than its config says, first {name}: "
            f"{list(stored)} in the files, {list(wanted)} by the config.",
            fix=fix,
        )
    # Older files hold what a model computes itself, such as rotary frequencies and masks.
    computed = {_tail(name) for name, _ in model.named_buffers()}
    unused = sorted(
        name
        for name in info["unexpected_keys"]
        if _tail(name) not in computed and not name.endswith(".masked_bias")
    )
    if unused:
        raise ModelError(
            f"{who} holds tensors that its config has no place for ({len(unused)}, first {unused[0]}); "
            "without them it is another model.",
            fix=fix,
        )


def _tail(name: str) -> tuple[str, ...]:
    """A buffer and the module that holds it, wherever that stands."""
    return tuple(name.split(".")[-2:])


def say_what_is_tied(model: Any) -> None:
    """Let the config say so where input and output embeddings are two matrices."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    weight = getattr(outputs, "weight", None)
    if weight is not None and weight is not getattr(inputs, "weight", None):
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def out_of_scope(config: Any, trusted: bool) -> str:
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
