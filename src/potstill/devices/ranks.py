"""The processes of a run: who this one is, and what they agree on.

Every process runs the same program. The first one takes locks and writes files; what it decides reaches the
others by `broadcast`. Alone, a process is the first of one, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from potstill.devices import jobs

# The others wait while the first one builds a student or waits for another run's lock. A process that ends
# closes its connections, which wakes the others at once.
LONGEST_WAIT = timedelta(days=30)

Value = TypeVar("Value")
_control: Any = None  # the group of plain values; it needs no device


def rank() -> int:
    """The number of this process, 0 without process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this process owns the files."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def total(value: Tensor) -> Tensor:
    """Sum over all processes, in the dtype of `value`."""
    if world() == 1:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def highest(number: int) -> int:
    """The highest of the processes' numbers."""
    if world() == 1:
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_control)
    return int(value)


def anyone(flag: bool) -> bool:
    """Whether the flag is set in any process, so that all take the same branch."""
    return bool(highest(int(flag)))


def broadcast(value: Value | None = None) -> Value:
    """The first process's value, in every process."""
    values = [value]
    if world() > 1:
        dist.broadcast_object_list(values, src=0, group=_control)
    return values[0]  # type: ignore[return-value]


def gather(value: Value) -> list[Value]:
    """Every process's value, in their order, in every process."""
    values: list[Any] = [value]
    if world() > 1:
        values = [None] * world()
        dist.all_gather_object(values, value, group=_control)
    return values


def by_first(work: Callable[[], Value]) -> Value:
    """Do work in the first process alone; all get its result.

    An error ends the first process, and with it the run."""
    return broadcast(work() if first() else None)


def first_goes_first(work: Callable[[], Value]) -> Value:
    """Do work in every process, the first one before the others: what it downloads, they find."""
    result = work() if first() else None
    broadcast()
    return result if first() else work()  # type: ignore[return-value]


def mine(items: Sequence[Value]) -> Sequence[Value]:
    """This process's share of items of similar size: every `world()`-th."""
    return items[rank() :: world()]


@contextmanager
def joined(processes: int) -> Iterator[None]:
    """Work together with the other processes of a run."""
    global _control
    if processes == 1 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    meeting: dict[str, Any] = {}
    if folder := os.environ.get(jobs.LAUNCHED):  # on one machine, where a file does for a server
        meeting = {
            "init_method": f"file://{folder}/processes",
            "rank": jobs.number(),
            "world_size": processes,
        }
    dist.init_process_group(backend, **meeting)
    _control = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    yield
    # Not after an error: the other processes may no longer answer, and this one is about to end.
    broadcast()
    dist.destroy_process_group()
    _control = None
