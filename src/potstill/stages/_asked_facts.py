"""The facts of answers that a served teacher gave: what is used, what is not and why, and what a request takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from potstill.data.dataset import Dataset
from potstill.data.prompts import MEASURED
from potstill.filters._patterns import masked
from potstill.generate.served import Given
from potstill.stages._judging import kind_of

SAMPLES, SHOWN = 3, 200  # of the replies rejected for a reason, and characters of one


def facts_of(lines: Sequence[Mapping[str, Any]], given: Sequence[Given], data: Dataset) -> dict[str, Any]:
    """Count the lines that are used and those with a reason.

    `left_out` holds rows that are trained on and rows that are measured on, not those that choose the best weights.
    """
    used = [line for line in lines if "reason" not in line]
    rejected = [line for line in lines if "reason" in line]
    marks = {row.id: MEASURED for row in data.heldout} | {row.id: "" for row in data.train}
    left_out = Counter(
        f"{marks[line['row_id']]}answer: {kind_of(line['reason'])}"
        for line in rejected
        if line["row_id"] in marks
    )
    return {
        "answers": len(used),
        "stopped": sum(line["finish"] == "stop" for line in used),
        "cut_off": sum(line["finish"] == "length" for line in used),
        "rejected": dict(Counter(kind_of(line["reason"]) for line in rejected)),
        "rejected_samples": _samples(rejected),
        "left_out": dict(left_out),
        "per_request": _per_request(given),
    }


def _per_request(given: Sequence[Given]) -> dict[str, Any]:
    """The tokens of a mean request, of how many it is the mean (those whose reply states its usage), and for how many
    of these it is known what was paid."""
    stated = [one for one in given if one.tokens_in is not None and one.tokens_out is not None]
    n = len(stated)
    sums = {name: sum(getattr(one, name) for one in stated) for name in ("tokens_in", "tokens_out", "cached")}
    costs = [one.cost for one in stated if one.cost is not None]
    paid = {"priced": len(costs), "paid": math.fsum(costs)}
    return {"n": n, **paid, **({name: total / n for name, total in sums.items()} if n else {})}


def _samples(rejected: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The first few replies that are rejected for each reason, with what was received."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for line in rejected:
        some = samples.setdefault(kind_of(line["reason"]), [])
        if len(some) < SAMPLES:
            # A page cannot hold half a character.
            text = masked(line["text"]).encode("utf-8", "replace").decode()[:SHOWN]
            some.append({"row_id": line["row_id"], "reason": line["reason"], "text": text})
    return samples


def dates_of(moments: Sequence[float]) -> str:
    """The day of all these moments, or the first and the last one."""
    ends = (
        [f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}" for moment in (min(moments), max(moments))]
        if moments
        else []
    )
    return " to ".join(dict.fromkeys(ends))
