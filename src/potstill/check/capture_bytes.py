"""What a capture will take on disk, as far as it is known before the teacher is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.cache import bounds, fidelity
from potstill.cache.codecs import codec
from potstill.check.report import Item
from potstill.errors import PotstillError
from potstill.recipe.stages import StageSpec
from potstill.stages._context import Setup
from potstill.stages._kept import BITS_OF_GIVEN
from potstill.stages._later import compared_of, cuts, keeper_of_ids, needs_of
from potstill.stages._states import TOPK, dtype_of
from potstill.stages._writing import in_bytes
from potstill.stages.capture import Capture
from potstill.teachers.cached import reading_of
from potstill.types import Example

WHOLE = "hidden", "kl_vector"  # kinds of which one format keeps to every limit
FIXED = (*WHOLE, "token")  # kinds of which every position takes as much
UNKNOWN = "the bytes are not known before the teacher is loaded"


@dataclass(frozen=True)
class Rows:
    """How many rows a capture asks about, and their scored tokens; `reckoned` where answers are yet to be written."""

    count: int
    tokens: int
    reckoned: bool = False

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Rows:
        """Rows with their answers; equal ones are stored once."""
        once = {(read.input_ids, read.scored) for read in map(reading_of, examples) if any(read.scored)}
        scored = [sum(marks) for _, marks in once]
        return cls(len(scored), sum(scored))

    def __str__(self) -> str:
        """How many there are."""
        at_most = " at most, with answers of full length" if self.reckoned else ""
        return f"{self.count} with {self.tokens} scored tokens{at_most}"


@dataclass(frozen=True)
class Span:
    """The most bytes, and the least where that is known."""

    most: float
    least: float | None = None

    def __add__(self, other: Span) -> Span:
        known = self.least is not None and other.least is not None
        return Span(self.most + other.most, self.least + other.least if known else None)  # type: ignore[operator]

    def __str__(self) -> str:
        if self.least is None:
            return f"at most {in_bytes(self.most)}"
        least, most = in_bytes(self.least), in_bytes(self.most)
        return most if least == most else f"{least} to {most}"


@dataclass(frozen=True)
class Form:
    """The kinds and settings among which a capture chooses."""

    words: str
    settings: Sequence[tuple[str, Mapping[str, Any]]]
    vocabulary: int
    widths: Mapping[str, int | None]
    budget: int | None = None  # bytes of a position

    @property
    def known(self) -> bool:
        return all(self.widths.get(kind, 0) is not None for kind, _ in self.settings)

    def span(self, tokens: int, rows: int = 0) -> Span:
        """Bytes of so many positions in so many rows."""
        sizes: dict[str, list[float]] = {}
        for kind, setting in self.settings:
            width = self.widths.get(kind) or 0
            size = bounds.most_bytes(
                kind, setting, tokens=tokens, rows=rows, vocabulary=self.vocabulary, width=width
            )
            sizes.setdefault(kind, []).append(size)
        # The smallest that keeps to the limit is taken, and one of these does.
        sure = [max(sizes[kind]) for kind in WHOLE if kind in sizes]
        most = min(sure) if sure and self.budget is None else max(map(max, sizes.values()))
        if self.budget is not None:
            most = min(most, tokens * self.budget)
        (kind, *others) = sizes
        least = min(*sizes[kind], most) if kind in FIXED and not others else None
        return Span(most, least)


def asked_about(
    setup: Setup,
    trained: Sequence[Example],
    others: Sequence[Sequence[Example]],
    new_tokens: int,
    samples: int,
) -> tuple[Rows, Rows]:
    """The rows to train and validate on, and those to measure on, that a capture asks about.

    Args:
        trained: the training rows; where a teacher has yet to write `samples` answers of `new_tokens`, their prompts.
        others: validation and held-out rows with their answers.
    """
    if not new_tokens:
        validation, *heldout = others
        return Rows.of([*trained, *validation]), Rows.of(heldout[0] if heldout else ())
    count, tokens = len(trained) * samples, len(trained) * samples * new_tokens
    if setup.mix is not None:
        count, tokens = len(trained), sum(example.planned[1] for example in trained)
    validation_rows, heldout_rows = len(setup.data.validation), len(setup.data.heldout)
    return (
        Rows(count + validation_rows, tokens + validation_rows * new_tokens, reckoned=True),
        Rows(heldout_rows, heldout_rows * new_tokens, reckoned=True),
    )


def items(stages: Sequence[StageSpec], setup: Setup, rows: Rows, heldout: Rows) -> Iterator[Item]:
    """An item for each capture: bytes of 1,000 scored tokens, and of the rows.

    Args:
        rows: that are trained and validated on.
        heldout: that are measured on, of which whole distributions are kept.
    """
    for stage in stages:
        if isinstance(stage, Capture):
            try:
                passed, words = True, _words(form_of(stage, stages, setup), setup, rows, heldout)
            except PotstillError as error:
                passed, words = False, str(error)
            yield Item(f"bytes of {stage.name}", passed, words)


def _words(form: Form | None, setup: Setup, rows: Rows, heldout: Rows) -> str:
    if form is None or not form.known:
        return UNKNOWN if form is None else f"{form.words}; {UNKNOWN}"
    teacher: Any = setup.teacher
    of_rows, width = form.span(rows.tokens, rows.count), form.widths["hidden"]
    parts = [
        f"{form.words}: {form.span(1000)} per 1,000 scored tokens",
        f"rows, {rows}: {of_rows}",
    ]
    if width is None:
        of_heldout = form.span(heldout.tokens, heldout.count)
        return "; ".join(
            [*parts, f"held-out rows, {heldout}: {of_heldout}", f"in all {of_rows + of_heldout}"]
        )
    states = codec("hidden").check({"format": "fp16"})
    of_heldout = Form("", [("hidden", states)], form.vocabulary, form.widths).span(
        heldout.tokens, heldout.count
    )
    size = form.vocabulary * width * (2 if "16" in dtype_of(teacher) else 4)
    # It stands beside each cache of hidden states.
    head = Span(size, size)
    total = of_rows + of_heldout + head
    parts.append(f"held-out rows, {heldout}, as fp16 hidden states: {of_heldout}; their head: {head}")
    if any(kind == "hidden" for kind, _ in form.settings):
        total = total + (head if len({kind for kind, _ in form.settings}) == 1 else Span(size, 0))
    return "; ".join([*parts, f"in all {total}"])


def form_of(spec: Capture, stages: Sequence[StageSpec], setup: Setup) -> Form | None:
    """What a capture may keep; None where only the teacher's first signal says.

    Raises:
        PotstillError: nothing that it can keep serves the later stages.
    """
    teacher: Any = setup.teacher
    if setup.readers.teacher is None:
        return None
    width, vocabulary = getattr(teacher, "hidden_width", None), setup.readers.teacher.vocabulary.size
    widths = {"hidden": width, "kl_vector": setup.student.hidden_width}
    needs = needs_of(stages, spec.name, partial=cuts(setup))
    chosen = spec.signal in ("auto", "smallest")
    if keeper_of_ids(stages[: stages.index(spec)]) is not None:
        setting = codec("topk").check({**TOPK, "temperatures": needs.temperatures})
        return Form("topk, as it is kept with the answers", [("topk", setting)], vocabulary, widths)
    if teacher.provides == {"topk"} and hasattr(teacher, "top_k"):
        setting = codec("topk").check({"threshold": 0.0, "most": teacher.top_k, "bits": BITS_OF_GIVEN})
        return Form(
            f"the {teacher.top_k} ids that the teacher gives", [("topk", setting)], vocabulary, widths
        )
    if width is None and not hasattr(teacher, "members") and (chosen or spec.signal == "hidden"):
        return None
    kinds: list[str] = [spec.signal]
    if chosen:
        kinds, _ = fidelity.kinds_for(
            compared_of(stages, spec.name, needs),
            needs.temperatures,
            spec.bytes_per_token,
            whole=width is not None,
            vectors="kl_vector" in needs.kinds,
        )
    settings = [(kind, one) for kind in kinds for one in fidelity.candidates(kind, needs.temperatures)]
    return Form(_chosen(kinds, settings, spec), settings, vocabulary, widths, spec.bytes_per_token)


def _chosen(kinds: Sequence[str], settings: Sequence[Any], spec: Capture) -> str:
    """How one of several kinds and settings is chosen."""
    names = " and ".join(kinds)
    if len(settings) == 1:
        return names
    if len(kinds) == 1:
        return f"{names}, its setting by measurement"
    if spec.bytes_per_token is not None:
        return f"the best of {names} within bytes_per_token, by measurement"
    return f"the smallest of {names}, by measurement"
