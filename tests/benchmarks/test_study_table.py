"""The table of the on-policy study."""

from __future__ import annotations

from types import ModuleType

import pytest

from builders import scripts


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return scripts.load("benchmarks/study_table.py")


def run(value: float, **more: object) -> dict[str, object]:
    """An arm of two prompts with two tokens each, at this value per token."""
    names = ("forward_kl", "own_reverse_kl", "rouge_l", "repetition", "stop_rate")
    scores = {name: [[2 * value, 2 * value], [2, 2]] for name in names}
    costs = {"steps": 10, "tokens": 500, "written_tokens": 40, "seconds": 240.0, "generation_seconds": 60.0}
    return {"rate": 1e-4, "scores": scores, "curve": [scores, scores], **costs, **more}


def test_a_row_holds_the_mean_of_the_seeds_and_their_spread(table):
    text = table.table([run(0.5)], {"kd": [run(0.2), run(0.4)]}, {})
    assert "| kd | 0.0001 | 0.300 [0.300, 0.300] (0.200 to 0.400) |" in text
    assert "| warm start |  | 0.500 [0.500, 0.500] |" in text


def test_costs_and_both_kls_on_the_way_stand_below(table):
    text = table.table([run(0.5)], {"gkd": [run(0.2)]}, {})
    assert "| gkd | 10 | 500 | 40 | 25% | 240 |" in text
    assert "| gkd | 0.200 / 0.200 | 0.200 / 0.200 |" in text


def test_what_screens_saw_stands_last_in_order_of_the_rates(table):
    tried = [{"rate": rate, "sum_of_kls": sum_of_kls} for rate, sum_of_kls in ((1e-4, 1.5), (1e-5, 1.25))]
    screens = {"kd": {"tried": tried}, "opd": {"tried": tried[:1]}}
    text = table.table([run(0.5)], {"kd": [run(0.2)]}, screens)
    assert text.endswith(
        "| method | 1e-05 | 0.0001 |\n| --- | --- | --- |\n| kd | 1.250 | 1.500 |\n| opd | – | 1.500 |"
    )


def test_the_teachers_answers_that_end_by_themselves_are_counted(table, tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(f'{{"greedy_tokens": {n}}}\n' for n in (128, 90, 128)), encoding="utf-8")
    assert table.ended(answers).endswith("1 of 3 have fewer than 128 tokens.")


def test_the_page_keeps_the_last_table_between_its_markers(table, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\n{table.END}\nafter\n", encoding="utf-8")
    for words in ("first", "second"):
        table.keep(page, words, "command")
    assert (
        page.read_text(encoding="utf-8")
        == f"before\n{table.BEGIN}\n```\ncommand\n```\n\nsecond\n{table.END}\nafter\n"
    )


def test_a_page_without_markers_is_refused(table, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match="has no"):
        table.keep(page, "table", "command")
