"""What the page takes from a run: rows lost on the way, and answers in an order that shows every family."""

from __future__ import annotations

from pathlib import Path

from potstill.data.dataset import Dataset
from potstill.data.rows import Row
from potstill.report import gather, summary
from potstill.report.summary import Outcome
from potstill.stages._context import State
from potstill.stages._training_rows import Examples
from potstill.store.artifacts import Artifact
from potstill.store.lines import write_lines
from potstill.types import Example


def rows(count: int) -> tuple[Row, ...]:
    return tuple(Row(f"r{i}", ({"role": "user", "content": "w"},)) for i in range(count))


def test_only_rows_that_were_lost_are_named_as_dropped() -> None:
    """Examples that were kept or split, and prompts that are measured on, are no loss to training."""
    counts = {
        "rows": 6,
        "broken": 0,
        "too_long": 1,
        "no_target": 0,
        "examples": 5,
        "split": 2,
        "reasoning": 3,
    }
    train = Examples(tuple(Example(f"r{i}", (1, 2), (False, True)) for i in range(5)), counts)
    outcome = Outcome(
        recipe=None,  # type: ignore[arg-type]
        data=Dataset(rows(6), rows(2), rows(3), "", {"read": 13, "kept": 11, "blank": 2, "broken": 0}, ""),
        teacher=None,
        state=State(
            left_out={"prompt too long": 1, "measured prompt too long": 4, "validation prompt too long": 2}
        ),
        examples={"train": train},
        metrics={},
    )
    assert gather.funnel(outcome) == [
        ("rows read", 11, {"blank": 2}),
        ("for training", 6, {"kept for validation": 2, "held out": 3}),
        ("as examples", 5, {"prompt too long": 1, "too_long": 1}),
    ]


def test_the_rows_left_never_grow_where_a_row_is_several_examples() -> None:
    train = Examples(
        tuple(
            Example(f"r{i}#{n}", (1, 2), (False, True), part_of=f"r{i}") for i in range(3) for n in range(4)
        )
    )
    outcome = Outcome(
        recipe=None,  # type: ignore[arg-type]
        data=Dataset(rows(3), rows(1), rows(1), "", {"read": 5, "kept": 5}, ""),
        teacher=None,
        state=State(),
        examples={"train": train},
        metrics={},
    )
    assert [left for _, left, _ in gather.funnel(outcome)] == [5, 3, 3]


def test_the_hash_of_rows_tells_contents_and_order_apart() -> None:
    def hashes(*splits: tuple[Row, ...]) -> list[str]:
        return [summary._rows(split)["sha256"] for split in splits]

    one, other = rows(2), (*rows(1), Row("r1", ({"role": "user", "content": "v"},)))
    assert len(set(hashes(one, other, one[::-1], one[:1]))) == 4
    assert hashes(one) == hashes(rows(2))


def test_families_take_turns_and_unseen_ones_come_first(tmp_path: Path) -> None:
    families = [("seen", False), ("seen", False), ("new", True), ("new", True), ("new", True)]
    lines = [{"n": n, "family": family, "unseen": unseen} for n, (family, unseen) in enumerate(families)]
    write_lines(tmp_path / "samples.jsonl", lines)
    assert [line["n"] for line in gather.samples(Artifact(tmp_path, {}))] == [2, 0, 3, 1, 4]
