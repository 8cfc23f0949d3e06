"""Weights from files of any kind into a model, and into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.models import claims
from potstill.models.border import border
from potstill.models.reading import arguments, reading
from potstill.models.source import Source


def read_weights(source: Source, **options: Any) -> Any:
    """Build the model of a source with all its weights; `options` are those of `from_pretrained`.

    Raises:
        ModelError: a weight is missing, or nobody reads it.
    """
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with reading(source):
        model, info = auto.from_pretrained(
            **arguments(source), **options, output_loading_info=True, ignore_mismatched_sizes=True
        )
    claims.require_all(model, info, source.location)
    claims.say_what_is_tied(model)
    return model


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
