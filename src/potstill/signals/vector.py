"""What forward KL needs of a teacher beside a frozen student head: softmax(z_T / T) W_S, and nothing else.

With student logits z = s (h W' + b), p the teacher at temperature T and v = p W, c = p b:

    KL(p ‖ q) = log Σ exp(z / T) - s (h v + c) / T - H(p),    d KL / d h = s (softmax(z / T) W - v) / T

so value and gradient by h are exact, and no id of the teacher is read. The head must not move: its own gradient
would need p itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.models.projection import wide
from potstill.signals.signal import Chunks
from potstill.signals.support import Support, Tail
from potstill.types import Head

UNFIT = "softcap", "module", "lora"  # what makes logits something else than s (h W' + b) of fixed W


def require_linear(head: Head) -> None:
    """Refuse a head through which a mean over ids is no map of the hidden state, or one that is trained.

    Raises:
        SignalError: names what stands against it.
    """
    for part in UNFIT:
        if getattr(head, part) is not None:
            raise SignalError(
                f"kl_vector needs a plain linear student head, and this one has a {part}.", fix="Use hidden."
            )
    if any(part is not None and part.requires_grad for part in (head.weight, head.bias)):
        raise SignalError(
            "kl_vector needs a frozen student head, and this one is trained.",
            fix="Set freeze_head: true in the training stage, or capture hidden.",
        )


@dataclass(frozen=True)
class KlVector:
    """The teacher's mean row of a student's head, its mean bias and its entropy, at one temperature.

    Values that were rounded on disk may bring a KL slightly below 0, so they count as estimates.
    """

    kind: ClassVar[str] = "vector"
    estimated: ClassVar[bool] = True

    vectors: Tensor  # [N, H_S]
    shift: Tensor  # [N], mean bias of the head
    entropy: Tensor  # [N] nats, H(p) at that temperature
    vocabulary: int  # ids of p
    temperature: float = 1.0

    @property
    def rows(self) -> int:
        return self.vectors.shape[0]

    def at(self, rows: Tensor | slice) -> KlVector:
        return replace(self, vectors=self.vectors[rows], shift=self.shift[rows], entropy=self.entropy[rows])

    def chunks(self, divergence: Divergence, tail: Tail) -> NoReturn:
        divergence.require_support(self.kind)
        raise SignalError(
            "a kl_vector signal is compared with hidden states, and logits alone were given.",
            fix="Train in potstill's own stages, or capture hidden.",
        )

    def beside(self, hidden: Tensor, head: Head) -> Beside:
        """The signal beside the student's hidden states [N, H_S] and the head that reads them.

        Raises:
            SignalError: the head is trained, not linear, or not the one that the vectors were made with.
        """
        require_linear(head)
        assert head.weight is not None
        made, given = (self.vocabulary, self.vectors.shape[1]), (head.vocabulary, head.weight.shape[1])
        if made != given:
            raise SignalError(
                f"kl_vector signals of a head of {made[0]} ids and width {made[1]} cannot serve one of {given[0]} "
                f"and {given[1]}.",
                fix="Capture again with this student.",
            )
        return Beside(self, hidden, head.scale)


@dataclass(frozen=True)
class Beside:
    """Vectors beside the hidden states that they are compared with."""

    kind: ClassVar[str] = KlVector.kind
    estimated: ClassVar[bool] = True

    signal: KlVector
    hidden: Tensor  # [N, H_S], with the graph of the student
    scale: float  # of the head

    @property
    def rows(self) -> int:
        return self.signal.rows

    def at(self, rows: Tensor) -> Beside:
        return replace(self, signal=self.signal.at(rows), hidden=self.hidden[rows])

    def chunks(self, divergence: Divergence, tail: Tail) -> Chunks:
        divergence.require_support(self.kind)
        means = self.mean_logits().detach()
        return lambda rows, student_logits: _Chunk(means[rows], self.signal.at(rows))

    def mean_logits(self) -> Tensor:
        """Σ p z [N], with the graph of the hidden states."""
        dtype = wide(self.hidden.dtype)
        products = (self.hidden.to(dtype) * self.signal.vectors.to(dtype)).sum(-1)
        return self.scale * (products + self.signal.shift.to(dtype))


@dataclass(frozen=True)
class _Chunk:
    """Some rows, and the teacher's mean of the student's logits there."""

    means: Tensor  # [c]
    signal: KlVector

    def beside(
        self, student_logits: Tensor, rows: slice, temperature: float, tail: Tail = "bucket"
    ) -> MeanSupport:
        """The student's log-probabilities, and the mean of these under the teacher.

        Raises:
            SignalError: the vectors are of another temperature.
        """
        if temperature != self.signal.temperature:
            raise SignalError(
                f"kl_vector signals of T={self.signal.temperature} cannot serve T={temperature}.",
                fix=f"Set temperature: {self.signal.temperature}, or capture hidden.",
            )
        logits = student_logits if temperature == 1.0 else student_logits / temperature
        total = logits.logsumexp(-1)
        lp = logits - total.unsqueeze(-1)
        mean = self.means[rows].to(lp.dtype) / temperature - total
        return MeanSupport(lp, lp, lp, mean_lp=mean, entropy=self.signal.entropy[rows].to(lp.dtype))


@dataclass(frozen=True, kw_only=True)
class MeanSupport(Support):
    """The student's whole distribution (in the teacher's place too, of which no id is known) and its mean
    log-probability under the teacher."""

    mean_lp: Tensor  # [N], Σ p log q
    entropy: Tensor  # [N], of the teacher

    def forward_kl(self, out: Tensor | None, temperature: float) -> Tensor:
        """KL(p ‖ q) [N]; the part softmax / T of its gradient by the logits is written into `out`.

        The other part, -p / T, reaches the hidden states through the mean of the logits.
        """
        if out is not None:
            torch.exp(self.full_lp, out=out)
            if temperature != 1.0:
                out.div_(temperature)
        return -self.mean_lp - self.entropy
