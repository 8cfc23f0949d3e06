"""The column that a teacher is shown: read before anything runs, and not one that the row itself is read from."""

from __future__ import annotations

import pytest

from builders import places
from potstill.errors import DataError

ROWS = places.answered()


def stages(column: str, before: str = "") -> str:
    stage = f"{{steps: 2, strategy: {{on_policy: {{max_new_tokens: 8}}}}, privileged: {{column: {column}}}}}"
    return f"[{before}{{distill: {stage}}}]"


def conversation(row: dict[str, str]) -> dict[str, object]:
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    return {"id": row["id"], "messages": turns}


@pytest.mark.parametrize("before", ["", "{generate: {max_new_tokens: 4}}, "])
@pytest.mark.parametrize(
    ("rows", "columns", "column"),
    [
        (ROWS, "", "response"),
        ([{**row, "output": row["response"]} | {"response": None} for row in ROWS], "", "output"),
        ([{"prompt": row["prompt"], "solution": row["response"]} for row in ROWS], "{solution: response}", "solution"),
        ([conversation(row) for row in ROWS], "", "messages"),
    ],
)  # fmt: skip
def test_for_the_column_of_a_rows_own_answer_the_words_that_show_it_are_said(
    tmp_path, rows, columns, column, before
):
    data = f"{{train: rows.jsonl{columns and f', columns: {columns}'}}}"
    place = places.write(tmp_path, rows, data=data, stages=stages(column, before))
    with pytest.raises(DataError, match=f"names '{column}', which the row's own answer is read") as refused:
        places.read(place)
    assert "privileged: {}" in refused.value.fix
    assert "generate" in refused.value.fix


def test_a_column_that_a_prompt_is_read_from_is_not_shown_beside_it(tmp_path):
    place = places.write(tmp_path, stages=stages("prompt"))
    with pytest.raises(DataError, match="names 'prompt', which the row itself is read from"):
        places.read(place)


def test_a_row_without_the_column_is_named_before_anything_runs(tmp_path):
    rows = [row | {"hint": "w9"} if index % 3 else row for index, row in enumerate(ROWS)]
    place = places.write(tmp_path, rows, stages=stages("hint", "{generate: {max_new_tokens: 4}}, "))
    with pytest.raises(DataError, match=r"rows\.jsonl:\d+: the column 'hint' holds None"):
        places.read(place)
