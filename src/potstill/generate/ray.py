"""Text from workers of Ray, each with the teacher's weights: on one machine, or on all of a cluster.

Plain actors over the local engine. A portion of answers is one task, written as the local engine writes it in one
process, so that the answers are the same, in half precision too. Each worker appends to a journal of its own as
soon as an answer is finished. (Ray Data would hand over rows in blocks of its own making, and write them down at
a block's end.)
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.devices import ranks
from potstill.errors import MachineError, PotstillError, RecipeError
from potstill.generate import local
from potstill.generate.request import Completion, GenerationProgress, Request, digest_of
from potstill.models import loading
from potstill.store.lines import append_line

MANY = True  # takes all portions at once
# Options that say where the work is done, not what comes of it.
PACE = frozenset({"workers", "cpus", "gpus", "address"})
SECONDS_BETWEEN_LOOKS = 0.5


def write(
    requests: Sequence[Request],
    *,
    workers: int = 2,
    cpus: float = 1.0,
    gpus: float = 0.0,
    address: str | None = None,
) -> Iterator[tuple[int, Completion]]:
    """Write the completions of several requests, each with the number of its request, as requests are finished.

    Args:
        requests: portions of answers, each done by one worker; `journal` is where workers append theirs.
        workers: processes, each with the weights.
        cpus, gpus: what a worker needs; a share of a GPU may be written as a fraction.
        address: of a running cluster, such as auto; a cluster on this machine is started when left out.

    Raises:
        MachineError: ray is not installed, the cluster has too little, or a worker died.
    """
    require_above_zero("generate.engine.ray", workers=workers, cpus=cpus)
    if not requests or requests[0].should_stop():
        return
    require(requests[0].teacher)
    pool = _pool(requests[0], min(workers, len(requests)), cpus, gpus, address)
    began, done, tokens = time.monotonic(), 0, 0

    def look() -> None:
        if progress := requests[0].on_progress:
            progress(GenerationProgress(done, done, tokens, time.monotonic() - began))

    try:
        for number, completions in pool.each([*map(_bare, requests)], requests[0].should_stop, look):
            for completion in completions:
                done, tokens = done + 1, tokens + len(completion.ids)
                yield number, completion
    finally:
        pool.close()


def require_above_zero(path: str, **above_zero: float) -> None:
    """Refuse numbers of workers, or of what they need, that are not above 0.

    Raises:
        RecipeError: names the first.
    """
    for name, value in above_zero.items():
        if value <= 0:
            raise RecipeError(f"cannot be {value}.", path=f"{path}.{name}", fix="Use a number above 0.")


def require(teacher: Any, path: str = "generate.engine") -> None:
    """Refuse before anything is loaded what cannot work.

    Raises:
        MachineError: ray is not installed.
        RecipeError: the run has several processes of its own.
    """
    if importlib.util.find_spec("ray") is None:
        raise _missing()
    if ranks.world() > 1:
        raise RecipeError(
            f"ray starts workers by itself, and this run has {ranks.world()} processes.",
            path=path,
            fix="Run it in one process, with engine: {ray: {workers: N}}, or use engine: local in all of them.",
        )


class Worker:
    """A process with a teacher's weights. It is asked for whole requests, and looks like a teacher to the engine.

    Args:
        journal: the file that it appends answers to; None to keep none.
    """

    def __init__(self, source: Any, dtype: Any, device: str, journal: Path | None) -> None:
        if journal is not None and not journal.parent.is_dir():
            raise MachineError(
                f"a worker does not see {journal.parent}.", fix="Put runs on a disk that all machines share."
            )
        self._loaded, self._journal = loading.load(source, dtype=dtype, device=device), journal

    def loaded(self) -> Any:
        """The model with its tokenizer."""
        return self._loaded

    def write(self, request: Request) -> list[Completion]:
        """All completions of a request; each is on disk as soon as it is finished."""
        completions = []
        for completion in local.write(replace(request, teacher=self)):
            completions.append(completion)
            if self._journal is not None:
                append_line(self._journal, line(digest_of(request.prompts[completion.index]), completion))
        return completions


def line(prompt: str, completion: Completion) -> dict[str, Any]:
    """What a worker writes down of an answer; its text can be read from the ids."""
    return {
        "prompt": prompt,
        "sample": completion.sample,
        "ids": list(completion.ids),
        "finish": completion.finish,
    }


class Pool:
    """Workers that take one task after the other.

    Args:
        kind: the class of a worker, and `made_with` what each of them is made with.
        cpus, gpus: what a worker needs.
        path: the option that names ray, for messages.

    Raises:
        MachineError: ray is not installed or does not start.
    """

    def __init__(
        self,
        kind: type,
        made_with: Sequence[tuple[Any, ...]],
        *,
        cpus: float,
        gpus: float,
        address: str | None,
        path: str = "engine.ray",
    ) -> None:
        self._ray = _ray()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            workers = len(made_with)
            started = (
                {"address": address}
                if address
                else {
                    "num_cpus": math.ceil(workers * cpus),
                    "num_gpus": math.ceil(workers * gpus),
                    "include_dashboard": False,
                }
            )
            try:
                self._ray.init(**started, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise MachineError(
                    f"ray does not start: {error}", fix=f"Check {path}.address, or leave it out."
                ) from error
        made = self._ray.remote(num_cpus=cpus, num_gpus=gpus)(kind)
        self._workers = [made.remote(*arguments) for arguments in made_with]

    def each(
        self,
        tasks: Sequence[Any],
        should_stop: Callable[[], bool],
        look: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, Any]]:
        """What a worker's `write` gives for each task, with the task's number, as they end; nothing after a stop.

        Args:
            look: called every now and then.

        Raises:
            MachineError: a worker died.
            PotstillError: what a task raised.
        """
        waiting, idle = deque(enumerate(tasks)), [*self._workers]
        flying: dict[Any, tuple[int, Any]] = {}
        while (waiting or flying) and not should_stop():
            while waiting and idle:
                number, task = waiting.popleft()
                worker = idle.pop()
                flying[worker.write.remote(task)] = (number, worker)
            ready, _ = self._ray.wait([*flying], timeout=SECONDS_BETWEEN_LOOKS)
            for reference in ready:
                number, worker = flying.pop(reference)
                idle.append(worker)
                yield number, self._result(reference)
            look()

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PotstillError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:  # a worker that was killed, or could not be made
            cause = getattr(error, "cause", None)
            raise MachineError(
                f"a worker of ray ended: {str(cause or error).strip().splitlines()[0]}",
                fix="Give each worker more memory (fewer workers, smaller batches) and run the same command again: "
                "what workers have written is kept.",
            ) from error

    def close(self) -> None:
        """End the workers, and the cluster where it was started here."""
        for worker in self._workers:
            self._ray.kill(worker)
        if self._ours:
            self._ray.shutdown()


def _pool(first: Request, workers: int, cpus: float, gpus: float, address: str | None) -> Pool:
    """Workers with the teacher's weights, each with its journal."""
    device = "cuda" if gpus else "cpu"
    journals = [
        None if first.journal is None else first.journal.with_name(f"{first.journal.name}.worker-{n}")
        for n in range(workers)
    ]
    made_with = [(first.teacher.source, first.teacher.dtype, device, journal) for journal in journals]
    return Pool(Worker, made_with, cpus=cpus, gpus=gpus, address=address)


def _bare(request: Request) -> Request:
    """A request without what belongs to this process."""
    return replace(request, teacher=None, on_progress=None, should_stop=_never, journal=None)


def _never() -> bool:
    return False


def _ray() -> Any:
    # Nothing is reported to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise _missing() from error
    return ray


def _missing() -> MachineError:
    return MachineError(
        "the package ray is not installed, and engine: ray writes with its workers.",
        fix="Install it: pip install 'potstill[ray]', or use engine: local.",
    )
