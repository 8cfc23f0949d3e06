"""The quickstart's messages: the held-out file must measure generalisation, not recall."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import pytest

Row: TypeAlias = dict[str, Any]

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"
SEEN_FAMILIES = {
    "animals", "course", "delay", "flat", "food", "help", "meeting", "order", "party", "repair", "school", "trip",
}  # fmt: skip
NUMBER = re.compile(
    r"\d.*|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen"
    r"|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand"
)
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def read(name: str) -> list[Row]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


TRAIN = read("prompts.jsonl")
HELDOUT = read("heldout.jsonl")


def words(prompt: str) -> list[str]:
    return WORD.findall(prompt.lower())


def ngrams(prompt: str, size: int) -> set[tuple[str, ...]]:
    sequence = words(prompt)
    return {tuple(sequence[i : i + size]) for i in range(len(sequence) - size + 1)}


def skeleton(prompt: str) -> str:
    """The prompt with its slots (numbers and capitalised words) blanked."""
    sequence = WORD.findall(prompt)
    return " ".join("_" if word[0].isupper() or NUMBER.fullmatch(word) else word for word in sequence)


def mostly_aligned(left: list[str], right: list[str]) -> bool:
    """Whether half of the words or more stand at the same place: slots may be lower-case nouns too."""
    same = sum(a == b for a, b in zip(left, right, strict=False))
    return len(left) == len(right) and 2 * same >= len(left)


def jaccard(left: set[str], right: set[str]) -> float:
    return len(left & right) / len(left | right)


def bad_lengths(train: list[Row], heldout: list[Row]) -> Iterator[str]:
    for row in train + heldout:
        count = len(row["prompt"].split())
        if not 30 <= count <= 80 or row["prompt"] != row["prompt"].strip():
            yield f"{row['id']}: {count} words"


def repeated_ids(train: list[Row], heldout: list[Row]) -> Iterator[str]:
    for name, count in Counter(row["id"] for row in train + heldout).items():
        if count > 1:
            yield name


def shared_8_grams(train: list[Row], heldout: list[Row]) -> Iterator[str]:
    trained = {gram for row in train for gram in ngrams(row["prompt"], 8)}
    for row in heldout:
        for gram in ngrams(row["prompt"], 8) & trained:
            yield f"{row['id']}: {' '.join(gram)}"


def shared_templates(train: list[Row], heldout: list[Row]) -> Iterator[str]:
    forms = [(row["id"], skeleton(row["prompt"]), words(row["prompt"])) for row in train + heldout]
    for (left, form, a), (right, other, b) in combinations(forms, 2):
        if form == other or mostly_aligned(a, b):
            yield f"{left} and {right}: {form}"


def near_duplicates(train: list[Row], heldout: list[Row]) -> Iterator[str]:
    sets = [(row["id"], set(words(row["prompt"]))) for row in train + heldout]
    for (left, a), (right, b) in combinations(sets, 2):
        if jaccard(a, b) >= 0.6:
            yield f"{left} and {right}: {jaccard(a, b):.2f}"


def body(message: str) -> str:
    """What stands between greeting and farewell."""
    return message.split("\n\n", 1)[-1]


def worn_openings(train: list[Row], heldout: list[Row]) -> Iterator[str]:
    openings = Counter(" ".join(words(body(row["prompt"]))[:3]) for row in train + heldout)
    for opening, count in openings.items():
        if count > 8:
            yield f"{opening!r}: {count} messages"


def leaked_families(train: list[Row], heldout: list[Row]) -> Iterator[str]:
    trained = {row["family"] for row in train}
    for row in heldout:
        if row.get("unseen", False) is not (row["family"] not in trained):
            yield f"{row['id']}: family {row['family']!r}, unseen {row.get('unseen', False)}"


Check: TypeAlias = Callable[[list[Row], list[Row]], Iterator[str]]
CHECKS: list[Check] = [
    bad_lengths,
    repeated_ids,
    shared_8_grams,
    shared_templates,
    near_duplicates,
    worn_openings,
    leaked_families,
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_shipped_messages_have_no_offender(check: Check) -> None:
    assert list(check(TRAIN, HELDOUT)) == []


def row(name: str, prompt: str, family: str = "food", **more: bool) -> Row:
    return {"id": name, "family": family, "prompt": prompt, **more}


PEARS = "Ada has 3 pears and eats one under the old tree by the river."
MORE = (
    " She will bring the others to the market on Friday, where her brother sells bread, honey and eggs from nine"
    " until noon, if the weather is good."
)
ONE = row("one", PEARS + MORE)
SPOILED: list[tuple[Check, list[Row]]] = [
    (bad_lengths, [row("two", "Too short.")]),
    (bad_lengths, [row("two", "word" + " word" * 80)]),
    (bad_lengths, [row("two", ("This message has a stray space at its end. " * 5))]),
    (repeated_ids, [row("one", "Nothing else is the same in this message.")]),
    (shared_8_grams, [row("two", "Yesterday Tom SAT: and eats one under the old tree, by a lake.")]),
    (shared_templates, [row("two", (PEARS + MORE).replace("Ada has 3", "Bo has 12").replace("one", "four"))]),
    (
        shared_templates,
        [row("two", "How is a lake unlike a river?"), row("three", "How is a cat unlike a dog?")],
    ),
    (near_duplicates, [row("two", "Under the old tree by the river Ada eats one of her pears." + MORE)]),
    (worn_openings, [row(str(i), f"Hi Bo,\n\nAda has 3 {'x' * i} things to do today") for i in range(8)]),
    (leaked_families, [row("two", "A family of training is called unseen here.", unseen=True)]),
    (leaked_families, [row("two", "A new family is not called unseen here.", family="concert")]),
]


@pytest.mark.parametrize(("check", "heldout"), SPOILED)
def test_a_spoiled_held_out_message_is_reported(check: Check, heldout: list[Row]) -> None:
    assert list(check([ONE], heldout)) != []


def test_training_has_276_messages_of_twelve_families_in_equal_shares() -> None:
    assert Counter(row["family"] for row in TRAIN) == dict.fromkeys(SEEN_FAMILIES, 23)


def test_held_out_has_60_messages_of_known_and_20_of_unknown_families() -> None:
    known = Counter(row["family"] for row in HELDOUT if not row.get("unseen", False))
    unknown = Counter(row["family"] for row in HELDOUT if row.get("unseen", False))
    assert known == dict.fromkeys(SEEN_FAMILIES, 5)
    assert len(unknown) == 4
    assert set(unknown.values()) == {5}
    assert SEEN_FAMILIES.isdisjoint(unknown)


def test_every_message_stands_under_the_same_instruction() -> None:
    assert len({item["system"] for item in TRAIN + HELDOUT}) == 1


@pytest.mark.parametrize("rows", [TRAIN, HELDOUT], ids=["train", "heldout"])
def test_rows_carry_only_the_documented_keys(rows: list[Row]) -> None:
    for item in rows:
        assert set(item) - {"unseen"} == {"id", "family", "system", "prompt"}
        assert all(isinstance(item[key], str) for key in ("id", "family", "system", "prompt"))
