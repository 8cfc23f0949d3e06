"""capture: what the teacher says of the rows is written down once, so that it can train, measure, and leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from potstill.recipe.defaults import Automatic, Facts
from potstill.recipe.specs import LARGEST, Auto, Conflict, Count, Duration, EngineChoice, Positive, whole
from potstill.recipe.stages import StageName, StageSpec

if TYPE_CHECKING:
    from potstill.stages._context import Context, State

MAX_KL_NATS = 0.001


class Capture(StageSpec):
    """The teacher's signals of all rows that are trained on or measured on, in a cache that later stages read."""

    needs: ClassVar[frozenset[str]] = frozenset({"distribution", "live"})

    verb: Literal["capture"] = "capture"
    name: StageName = "capture"
    signal: Literal["auto", "smallest", "hidden", "topk", "sampled", "topk_sampled", "kl_vector", "token"] = (
        "auto"
    )
    """What is kept of a position: the final hidden state (exact to rounding), the likeliest ids, draws, both, the
    mean of the student's head where that is frozen (forward KL), or the given token alone; smallest is the one of
    fewest bytes that the later stages can read."""
    max_kl_nats: Positive | None = None
    """Most mean KL(teacher ‖ what is kept) in nats a token, measured on a sample; without bytes_per_token it is 0.001."""
    bytes_per_token: Count | None = None
    """Most bytes of a scored token, measured on a sample; in place of max_kl_nats."""
    engine: EngineChoice = EngineChoice(name="local")
    """Who asks the teacher: this process (local), or workers of Ray that load its weights; the bytes are the same."""
    deadline: Duration | None = None
    """When to end: rows come in a drawn order, and later stages train on those that were reached."""
    shard_bytes: Annotated[int, Field(ge=2**10, le=LARGEST), BeforeValidator(whole)] = 2**27
    """About how large a file of the cache is; several processes write several files at a time."""
    batch_tokens: Count | Auto = "auto"
    """Most tokens, padding included, in one forward pass of the teacher."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.engine.name not in ("local", "ray"):
            yield Conflict(
                "engine",
                f"cannot be {self.engine.name}: an engine that serves a teacher is named by the teacher.",
                "Write local or ray, and for vLLM or SGLang teacher: {scores: URL, model: NAME}.",
            )
        if self.max_kl_nats is not None and self.bytes_per_token is not None:
            message = "is given too, and both say how much is kept."
            yield Conflict("bytes_per_token", message, "Remove one of the two.")

    @property
    def limit(self) -> float | None:
        """Most mean KL of what is kept; None where bytes are the limit."""
        if self.bytes_per_token is not None:
            return None
        return MAX_KL_NATS if self.max_kl_nats is None else self.max_kl_nats

    def automatic(self, facts: Facts) -> dict[str, Automatic]:
        chosen: dict[str, Automatic] = {}
        if self.signal == "auto":
            why = "chosen on a sample of the rows, among what the later stages can read"
            chosen["signal"] = "smallest", why
        if self.batch_tokens == "auto":
            chosen["batch_tokens"] = (16384 if facts.accelerated else 2048), f"chosen for {facts.machine}"
        return chosen


def run(spec: Capture, state: State, context: Context) -> State:
    """Ask the teacher about every row that a later stage trains on, validates on or measures on."""
    from potstill.stages import _capture

    spec, defaults = context.settle(spec, state)
    captured = _capture.capture(spec, state, context)
    return state.after(spec, captured, defaults, captured=captured)
