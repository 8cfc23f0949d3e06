"""What a check says of teachers that are shown more than the student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from potstill.check.report import Item
from potstill.errors import DataError
from potstill.recipe.stages import StageSpec
from potstill.stages._context import Setup
from potstill.stages._privileged import with_privileged
from potstill.stages._training_rows import TrainingRows
from potstill.stages.distill import Distill
from potstill.types import Example


def items(stages: Sequence[StageSpec], setup: Setup, rows: Sequence[Example]) -> Iterator[Item]:
    """An item for each such stage on rows whose answers are known: how its teacher reads the first of them."""
    for stage in stages:
        if not isinstance(stage, Distill) or stage.privileged is None:
            continue
        try:
            shown = with_privileged(TrainingRows(tuple(rows), ()), stage, setup).train
        except DataError as error:
            yield Item(f"privileged of {stage.name}", False, str(error))
            continue
        reading = shown[0].reading
        assert reading is not None
        prompt = [
            index for index, scored in zip(reading.input_ids, reading.scored, strict=True) if not scored
        ]
        reader = setup.readers.student if stage.self_teacher is not None else setup.readers.teacher_reader
        text = reader.tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        detail = f"{len(shown)} of {len(rows)} rows; as the teacher reads {shown[0].row_id}: {text!r}"
        yield Item(f"privileged of {stage.name}", True, detail)
