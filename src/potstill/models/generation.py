"""A model's own settings for generation: which ids end its answers, and what of them can be kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from potstill.errors import ModelError
from potstill.models import files
from potstill.models.border import quiet
from potstill.models.reading import read_settings
from potstill.models.source import Source

log = logging.getLogger("potstill")


def end_ids(source: Source, size: int | None = None) -> tuple[int, ...]:
    """Ids that end the model's answers by its generation_config.json; none without that file. `size` counts the
    ids that the model can write.

    A config's own end token is not asked: libraries fill it in where nobody wrote one.

    Raises:
        ModelError: the file cannot be read, or names something that is no id.
    """
    value = read_settings(source, files.GENERATION).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for one in ids:
        if type(one) is not int or one < 0 or (size is not None and one >= size):
            raise ModelError(
                f"{files.GENERATION} of {source.location} says that {one!r} ends an answer, which is no id of it.",
                fix="Correct its eos_token_id: a whole number from 0 up, or a list of them.",
            )
    return tuple(ids)


def settings_for(model: Any, stop_ids: Iterable[int], pad_id: int) -> Any:
    """The model's settings, with every id that ended an answer in training beside its own, and the padding."""
    old = getattr(model, "generation_config", None)
    own = () if old is None else _ids(old.eos_token_id)
    ends = list(dict.fromkeys([*stop_ids, *own]))
    values = {} if old is None else dict(old.to_diff_dict())
    values |= {"eos_token_id": ends[0] if len(ends) == 1 else ends or None, "pad_token_id": pad_id}
    return _valid(values)


def keep_valid(model: Any) -> None:
    """Drop settings that contradict the rest: no library obeys them, and none saves a model with them."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config = _valid(dict(model.generation_config.to_diff_dict()))


def _valid(values: dict[str, Any]) -> Any:
    from transformers import GenerationConfig

    first = [name for name in ("do_sample", "num_beams", "num_return_sequences") if name in values]
    kept: dict[str, Any] = {}
    dropped = []
    with quiet():
        for name in [*first, *(name for name in values if name not in first)]:
            try:
                GenerationConfig(**kept, **{name: values[name]}).validate(strict=True)
            except (ValueError, TypeError):
                dropped.append(name)
            else:
                kept[name] = values[name]
        if dropped:
            log.warning(
                "%s of the model's generation settings contradict the rest and are left out of the student",
                ", ".join(sorted(dropped)),
            )
        return GenerationConfig(**kept)


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
