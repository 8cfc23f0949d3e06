"""As much of Ray as potstill uses, in one process: actors run at once, and everything crosses by pickle as it does there.

`calls` holds what `init` was told; `dying` makes the next result that of a worker that was killed.
"""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

calls: list[dict[str, Any]] = []
killed: list[Any] = []
dying: list[bool] = []
_state = {"open": False}


class RayError(Exception):
    pass


class ActorDiedError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, ActorDiedError=ActorDiedError)


def is_initialized() -> bool:
    return _state["open"]


def init(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    include_dashboard: bool | None = None,
    log_to_driver: bool = True,
    logging_level: Any = 20,
) -> None:
    if address == "nowhere":
        raise ConnectionError("Could not find any running Ray instance.")
    calls.append({"address": address, "num_cpus": num_cpus, "num_gpus": num_gpus})
    _state["open"] = True


def shutdown() -> None:
    _state["open"] = False


class _Method:
    def __init__(self, actor: _Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *args: Any) -> SimpleNamespace:
        reference = _Reference()
        if dying:
            dying.pop()
            reference.error = ActorDiedError("The actor died unexpectedly before finishing this task.")
            return reference
        try:
            value = getattr(self._actor.made(), self._name)(*pickle.loads(pickle.dumps(args)))
            reference.value = pickle.loads(pickle.dumps(value))
        except Exception as error:
            reference.error = RayTaskError(error)
        return reference


class _Reference:
    value: Any = None
    error: Exception | None = None


class _Actor:
    def __init__(self, kind: type, args: tuple[Any, ...]) -> None:
        self._kind, self._args, self._object = kind, pickle.loads(pickle.dumps(args)), None

    def made(self) -> Any:
        if self._object is None:
            self._object = self._kind(*self._args)
        return self._object

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)


def remote(*, num_cpus: float | None = None, num_gpus: float | None = None) -> Any:
    return lambda kind: SimpleNamespace(remote=lambda *args: _Actor(kind, args))


def wait(references: list[Any], *, num_returns: int = 1, timeout: float | None = None) -> tuple[list, list]:
    """The last ones first: results come in any order."""
    return references[-1:], references[:-1]


def get(reference: Any) -> Any:
    if reference.error is not None:
        raise reference.error
    return reference.value


def kill(actor: Any) -> None:
    killed.append(actor)
