"""Where a recipe runs: how many processes, and what each of them holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe.specs import Auto, Conflict, Count, Int, Spec


class TeacherApart(Spec):
    """`{on: [2, 3]}`: GPUs of each machine that hold teachers and no student."""

    on: Annotated[tuple[Int, ...], Field(strict=False, min_length=1)]
    """Their numbers among the visible ones. The teacher of a machine's k-th process is on the k-th of them, round
    about."""

    def conflicts(self) -> Iterator[Conflict]:
        if twice := [gpu for gpu in self.on if self.on.count(gpu) > 1]:
            yield Conflict("on", f"names GPU {twice[0]} twice.", "Name each GPU once.")


class DevicesSpec(Spec):
    """Where a run works. Nothing here changes a result beyond rounding."""

    processes: Count | Auto = "auto"
    """Processes that potstill starts on this machine; auto is one a GPU that holds no teacher alone, or one.
    A job that started several processes by itself (torchrun, SLURM) has decided it."""
    sharding: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """How processes train together: each with a whole student (ddp) or with a part of it (fsdp); auto takes ddp
    where a student with its gradients and averages fits beside the teacher. none is for one process."""
    teacher: Literal["replicated", "sharded"] | TeacherApart = "replicated"
    """Whether each process holds a whole teacher beside its student, or a part of one that is gathered layer by
    layer; or GPUs for teachers alone: `{on: [2, 3]}`."""

    @property
    def apart(self) -> tuple[int, ...]:
        """The GPUs that hold teachers alone."""
        return self.teacher.on if isinstance(self.teacher, TeacherApart) else ()
