"""On which GPU a process trains, and on which its teacher lives."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from potstill.devices import ranks
from potstill.errors import RecipeError

ON = "devices.teacher.on"


def processes(wanted: int | None, apart: Sequence[int]) -> int:
    """How many processes this machine starts: as many as are wanted, else one a GPU that holds no teacher alone.

    Args:
        wanted: the recipe's number, None for `auto`.
        apart: the GPUs that hold teachers alone.

    Raises:
        RecipeError: the machine lacks these GPUs, or has too few beside them.
    """
    gpus = torch.cuda.device_count()
    free = _free(gpus, apart)
    if wanted is None:
        return max(1, len(free))
    if gpus and wanted > len(free):
        beside = f", of which {len(apart)} hold teachers" if apart else ""
        raise RecipeError(
            f"{wanted} processes need a GPU each, and this machine shows {gpus}{beside}.",
            path="devices.processes",
            fix=f"Give {len(free)} or auto.",
        )
    return wanted


def take(apart: Sequence[int]) -> None:
    """Make this process's GPU the current one: the GPUs that hold no teacher alone, in their order.

    Raises:
        RecipeError: as in `processes`.
    """
    leave_out_planned_attention()
    free = _free(torch.cuda.device_count(), apart)
    if free and (apart or ranks.world() > 1):
        torch.cuda.set_device(free[ranks.local_rank() % len(free)])


def leave_out_planned_attention() -> None:
    """Leave cuDNN's attention out of this process: where a padding mask is given, it builds a plan for every new shape,
    and the shapes of ragged rows and of a decoding batch are new at every step."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def of_teacher(apart: Sequence[int], own: torch.device) -> torch.device:
    """The device of this process's teacher: one of the GPUs set apart, else the process's own."""
    return torch.device("cuda", apart[ranks.local_rank() % len(apart)]) if apart else own


def _free(gpus: int, apart: Sequence[int]) -> list[int]:
    """The GPUs that processes train on."""
    if missing := [gpu for gpu in apart if gpu >= gpus]:
        raise RecipeError(
            f"the teacher is to be on GPU {missing[0]}, and this machine shows {gpus or 'no'} "
            f"GPU{'s' * (gpus != 1)}.",
            path=ON,
            fix=f"Give numbers from 0 to {gpus - 1}." if gpus > 1 else "Leave devices.teacher out.",
        )
    free = [gpu for gpu in range(gpus) if gpu not in apart]
    if apart and not free:
        raise RecipeError(
            f"all {gpus} visible GPUs hold teachers, and none is left to train on.",
            path=ON,
            fix="Leave one out, or devices.teacher altogether: then each GPU holds both.",
        )
    return free
