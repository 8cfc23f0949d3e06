"""What a capture keeps of a position: the smallest kind and setting that later stages can read, by measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from potstill.cache import fidelity
from potstill.cache.codecs import codec
from potstill.cache.probabilities import pieces
from potstill.errors import RecipeError, SignalError
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.signals.topk import TopK
from potstill.stages import _signals

if TYPE_CHECKING:
    from potstill.stages._capture import Job

BITS_OF_GIVEN = (
    16  # of a log-probability that comes from a teacher of likeliest ids, whose error nobody can measure
)
MOST_OF_GIVEN = (2**8 - 1, 2**16 - 1, 2**20)
BYTES_OF_GIVEN = 4.0  # about what an id with it takes


@dataclass(frozen=True)
class Kept:
    """A kind of cache and its setting, with what was measured of it on a sample and why it was taken.

    `bytes_per_token` is what a scored token costs, `width` the length of a hidden state, `head_bytes` the size of the
    head that reads it.
    """

    kind: str
    setting: Mapping[str, Any]
    why: str
    bytes_per_token: float
    width: int
    measured: Mapping[str, Any] = field(default_factory=dict)
    head_bytes: int = 0

    def size(self, count: int) -> float:
        """About the bytes of a cache of so many scored tokens."""
        return count * self.bytes_per_token + (self.head_bytes if count and self.kind == "hidden" else 0)

    @property
    def words(self) -> str:
        """In a few words."""
        settings = ", ".join(f"{name} {value}" for name, value in self.setting.items() if name != "dtype")
        kl = self.measured.get("kl_mean")
        lost = "" if kl is None else f", KL {kl:.2g} nats (p99 {self.measured['kl_p99']:.2g})"
        return f"{self.kind} ({settings}), {self.bytes_per_token:.0f} bytes{lost}"

    def whole(self, dtype: str) -> Kept:
        """What is kept of the rows to measure on: the hidden state, of which every figure can be computed; the same as
        of other rows where the teacher has none."""
        if not self.width:
            return self
        setting = {"format": "fp16", "dtype": dtype}
        why = "of every held-out position"
        return Kept("hidden", setting, why, 2.0 * self.width, self.width, head_bytes=self.head_bytes)


def choose(job: Job, signals: Sequence[Any]) -> Kept:
    """The kind and setting for these signals of the first rows.

    Raises:
        RecipeError: none keeps to the limit; names the closest.
    """
    spec, first = job.spec, signals[0] if signals else None
    vocabulary = job.context.setup.readers.teacher_reader.vocabulary.size
    width = first.hidden.shape[1] if isinstance(first, Hidden) else 0
    head_bytes = vocabulary * width * first.hidden.element_size() if isinstance(first, Hidden) else 0
    if job.state.written is not None and not _signals.measurable(job.kept_states):
        facts, why = job.state.written.facts["kept"], "as the teacher's answers were drawn"
        size, measured = facts["bytes_per_token"], facts["measured"]
        return Kept(facts["kind"], facts["setting"], why, size, width, measured, head_bytes)
    if spec.signal == "token":
        why = "the given token was asked for"
        return Kept("token", {"format": "fp32"}, why, 4.0, width, head_bytes=head_bytes)
    if isinstance(signals[0], TopK):
        return _as_they_come(spec.signal, max(signal.ids.shape[1] for signal in signals), spec.name)
    try:
        chosen = fidelity.choose(
            joined(signals, torch.device("cpu"), vocabulary),
            "auto" if spec.signal == "smallest" else spec.signal,
            max_kl_nats=spec.limit,
            bytes_per_token=spec.bytes_per_token,
            divergences=job.divergences,
            temperatures=job.needs.temperatures,
            vocabulary=vocabulary,
            student=None if job.student is None else job.student.head,
            student_name="" if job.student is None else job.student.name,
            examples=[signal.rows for signal in signals],
        )
    except SignalError as error:
        limit = "max_kl_nats" if spec.limit is not None else "bytes_per_token"
        path = f"stages.{spec.name}.{limit}"
        raise RecipeError(error.message, path=path, fix=error.fix) from error
    setting = dict(chosen.setting) | ({"dtype": job.dtype} if chosen.kind == "hidden" else {})
    measured = chosen.measured
    return Kept(chosen.kind, setting, chosen.why, measured["bytes_per_token"], width, measured, head_bytes)


def _as_they_come(asked: str, width: int, name: str) -> Kept:
    """Of a teacher that gives its likeliest ids alone all of them: without the others no error can be measured.

    Raises:
        RecipeError: something else was asked for.
    """
    if asked not in ("smallest", "auto", "topk"):
        raise RecipeError(
            f"cannot be {asked}: the teacher gives its {width} likeliest ids and nothing more.",
            path=f"stages.{name}.signal",
            fix="Leave it out, or write topk.",
        )
    # Later positions may have more ids than those of the sample: as many as its type of counts can say.
    most = next(most for most in MOST_OF_GIVEN if width <= most)
    setting = codec("topk").check({"threshold": 0.0, "most": most, "bits": BITS_OF_GIVEN})
    return Kept("topk", setting, "what the teacher gives", width * BYTES_OF_GIVEN, 0)


def joined(signals: Sequence[Any], device: torch.device, vocabulary: int) -> Any:
    """The signals of several rows as one, on one device; of teachers without logits their distributions at T = 1, by
    which settings are measured."""
    first = signals[0]
    if isinstance(first, Hidden):
        return Hidden(torch.cat([signal.hidden for signal in signals]).to(device), first.head.to(device))
    if isinstance(first, Dense):
        return Dense(torch.cat([signal.logits for signal in signals]).to(device))
    parts = (lp_at(1.0) for signal in signals for _, lp_at in pieces(signal, vocabulary))
    return Dense(torch.cat([part.to(device) for part in parts]))
