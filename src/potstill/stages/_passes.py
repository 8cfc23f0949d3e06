"""A capture of a teacher that is read block by block: all rows pass through one block before the next is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.devices import ranks
from potstill.errors import RecipeError

if TYPE_CHECKING:
    from potstill.stages._capture import Job

THOUSAND = 1000  # parts of a progress whose whole is not known beforehand


def pass_through(job: Job, share: tuple[int, int]) -> None:
    """Let the job's teacher pass all rows through its blocks; behind it the teacher answers for them.

    Raises:
        RecipeError: several processes share the capture.
    """
    teacher = job.teacher
    if share[1] > 1 or ranks.world() > 1:
        raise RecipeError(
            f"cannot be shared: {teacher.name} is read block by block, once for all rows.",
            path=f"stages.{job.spec.name}",
            fix=f"Run with devices.processes=1 --until {job.spec.name} and without --shard first, then as it is.",
        )
    label = f"{job.spec.name}: rows pass {teacher.name}, block by block"
    with job.context.console.bar(label, THOUSAND) as bar:
        teacher.prepare(
            [*job.heldout, *job.rows],
            before_batch=job.context.stop_if_signalled,
            on_progress=lambda done, total: bar.update(done * THOUSAND // total),
        )
