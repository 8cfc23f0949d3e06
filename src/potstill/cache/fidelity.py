"""Choose how a teacher is stored from a bound on the error or on the bytes: a sample is stored, read and compared.

What an error is says `potstill.cache.measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill.cache.codecs import codec
from potstill.cache.measure import measure
from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.signals.hidden import Hidden
from potstill.signals.signal import Signal
from potstill.types import Head

_THRESHOLDS = (0.1, 0.05, 0.03, 0.02, 0.01, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4)
_DRAWS = (4, 8, 16, 32, 50, 100, 200, 400)
_AT_ONE = ("sampled", "topk_sampled", "kl_vector")
_READS = {
    "hidden": "dense", "topk": "topk", "sampled": "sampled", "topk_sampled": "sampled", "kl_vector": "vector",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """How to store a teacher, and what that costs and keeps; `measured` is for the header's facts.

    `measured` holds kl_mean and kl_p99 (nats per token; the noise where targets are drawn), tail_mean, dlogp_mean
    (|stored - true| log-probability of stored ids) and bytes_per_token, over `tokens` positions.
    """

    kind: str
    setting: dict[str, Any]
    measured: dict[str, float]
    why: str


def choose(
    sample: Signal,
    kind: str = "auto",
    *,
    max_kl_nats: float | None = None,
    bytes_per_token: float | None = None,
    head: Head | None = None,
    divergences: Sequence[Divergence] = (),
    temperatures: Sequence[float] = (1.0,),
    examples: Sequence[int] | None = None,
    vocabulary: int | None = None,
    student: Head | None = None,
    student_name: str = "",
) -> Choice:
    """Choose the smallest setting whose error on a sample meets a bound, or the best one within a budget.

    Args:
        sample: hidden states or logits of some hundred positions, of real rows.
        kind: one of `codecs.names()`, or auto.
        max_kl_nats: most of the mean error, 0.001 where nothing is said.
        bytes_per_token: a budget in place of it.
        head: reads hidden states; that of the sample where there is none.
        divergences: what will be trained on the cache; none for whole distributions (any divergence, evaluation).
        temperatures: at which they compare.
        examples: how many positions of the sample belong to each example.
        vocabulary: ids that the teacher knows, where the sample does not say.
        student: the head of a student that it keeps as it is, and `student_name` what identifies it; without one
            there is no kl_vector.

    Raises:
        SignalError: no setting meets the bound; names the closest.
    """
    if max_kl_nats is not None and bytes_per_token is not None:
        raise SignalError("both max_kl_nats and bytes_per_token are given.", fix="Give one of them.")
    bound = 1e-3 if max_kl_nats is None else max_kl_nats
    if not sample.rows:
        raise SignalError("the sample has no positions to measure.")
    if isinstance(sample, Hidden) and head is not None:
        sample = Hidden(sample.hidden, head)
    if kind == "auto":
        kinds, why = kinds_for(
            divergences,
            temperatures,
            bytes_per_token,
            whole=isinstance(sample, Hidden),
            vectors=student is not None,
        )
    else:
        require_readable(kind, divergences, temperatures)
        if kind == "kl_vector" and student is None:
            raise SignalError("kl_vector needs the head of a student that keeps it.", fix="Use hidden.")
        kinds, why = [kind], f"{kind} was asked for"
    tried: list[Choice] = []
    for each in kinds:
        settings = candidates(each, temperatures, student_name)
        pairs = [(each, setting) for setting in settings]
        measured = measure(sample, pairs, examples=examples, vocabulary=vocabulary, student=student)
        tried += [Choice(each, s, facts, "") for s, facts in zip(settings, measured, strict=True)]
    best = _within(tried, bound, bytes_per_token)
    rank, limit = "smallest", f"{bound:g} nats"
    if bytes_per_token is not None:
        rank, limit = "best", f"{bytes_per_token:g} bytes a token"
    measured_on = (
        f"of {len(tried)} settings measured on {sample.rows} positions it is the {rank} within {limit}"
    )
    return replace(best, why=f"{why}; {measured_on}")


def _within(tried: Sequence[Choice], bound: float, budget: float | None) -> Choice:
    if budget is not None:
        fitting = [one for one in tried if one.measured["bytes_per_token"] <= budget]
        if fitting:
            return min(fitting, key=lambda one: one.measured["kl_mean"])
        least = min(tried, key=lambda one: one.measured["bytes_per_token"])
        raise SignalError(
            f"no setting of {least.kind} fits into {budget:g} bytes a token; the smallest takes "
            f"{least.measured['bytes_per_token']:.1f}.",
            fix="Raise bytes_per_token, or choose sampled or topk_sampled.",
        )
    fitting = [one for one in tried if one.measured["kl_mean"] <= bound]
    if fitting:
        return min(fitting, key=lambda one: one.measured["bytes_per_token"])
    best = min(tried, key=lambda one: one.measured["kl_mean"])
    raise SignalError(
        f"no setting keeps to {bound:g} nats a token; the best, {best.kind} {dict(best.setting)}, has "
        f"{best.measured['kl_mean']:.2g} at {best.measured['bytes_per_token']:.0f} bytes.",
        fix="Raise max_kl_nats, or choose hidden, which is exact to rounding.",
    )


def kinds_for(
    divergences: Sequence[Divergence],
    temperatures: Sequence[float],
    budget: float | None,
    *,
    whole: bool,
    vectors: bool,
) -> tuple[list[str], str]:
    """The kinds that auto considers, and the reason.

    Args:
        budget: the most bytes of a token, None where the error is bounded.
        whole: the teacher gives hidden states.
        vectors: there is a student that keeps its head.

    Raises:
        SignalError: none serves.
    """
    one_temperature = len({float(t) for t in temperatures}) == 1
    if divergences and all(one.linear for one in divergences) and one_temperature:
        names = ", ".join(one.name for one in divergences)
        why = f"{names} is linear in the teacher, so exact likely ids and unbiased draws serve it"
        if not vectors or not all("vector" in one.supports for one in divergences):
            return ["topk_sampled"], why
        return ["topk_sampled", "kl_vector"], f"{why}, and the student keeps its head, so its mean does too"
    stored = bool(divergences) and all("topk" in one.supports for one in divergences)
    if stored and (budget is not None or not whole):
        return (["hidden"] if whole else []) + ["topk"], "the divergences read stored ids with a tail bucket"
    if whole:
        kinds = ["hidden", "topk"] if stored else ["hidden"]
        return kinds, "hidden states serve every divergence, temperature and evaluation"
    if stored:
        return ["topk"], "the teacher gives no hidden states"
    raise SignalError(
        "the teacher gives no hidden states, and what is needed reads whole distributions.",
        fix="Choose a divergence that reads stored ids, or a teacher with weights here.",
    )


def require_readable(kind: str, divergences: Sequence[Divergence], temperatures: Sequence[float]) -> None:
    """Refuse a kind that a divergence or the temperatures cannot use.

    Raises:
        SignalError: names the divergence.
    """
    support = _READS.get(kind)
    for one in divergences:
        if support is None or support not in one.supports:
            raise SignalError(
                f"{one.name} cannot be computed from a cache of the kind {kind}.",
                fix="Use hidden, or signal: auto.",
            )
    if kind in _AT_ONE and len({float(t) for t in temperatures}) > 1:
        raise SignalError(f"a cache of the kind {kind} serves one temperature.", fix="Use topk or hidden.")


def candidates(
    kind: str, temperatures: Sequence[float] = (1.0,), student_name: str = ""
) -> list[dict[str, Any]]:
    """The settings of a kind that are measured; those of kl_vector name the student's head."""
    first = float(next(iter(temperatures), 1.0))
    others = sorted({float(t) for t in temperatures} - {1.0})
    every: dict[str, list[dict[str, Any]]] = {
        "hidden": [{"format": "int8"}, {"format": "fp16"}],
        "topk": [
            {"threshold": t, "most": 256, "bits": b, "temperatures": others}
            for b in (6, 8)
            for t in _THRESHOLDS
        ],
        "sampled": [{"draws": n, "temperature": first} for n in _DRAWS],
        "topk_sampled": [
            {"threshold": t, "most": 32, "draws": n, "temperature": first}
            for t in (0.1, 0.03, 0.01)
            for n in _DRAWS
        ],
        "token": [{"format": "fp32"}],
        "kl_vector": [{"format": f, "temperature": first, "head": student_name} for f in ("int8", "fp16")],
    }
    return [codec(kind).check(setting) for setting in every[kind]]
