"""The state of a run, read from its folder alone, also while another process works in it."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.console import clock, typed
from potstill.devices import jobs
from potstill.errors import MachineError, PotstillError, RecipeError
from potstill.recipe import plugins
from potstill.store.folder import RECIPE, RunDir
from potstill.store.lines import read_journals, read_tail


@dataclass(frozen=True)
class Status:
    """`state`: finished, running, interrupted, failed, or died (its process ended without saying so).

    `error` is why a failed run failed: code, message, path, value, fix, retryable and exit_code, as the run
    itself prints them with --json; None in every other state. `verdict` and `outputs` are a finished run's.
    `writing` is how many answers a stage that generates has written, in all its journals, of how many.
    `asking` is what a served teacher was asked for, as `potstill.generate.served.Spending` has it; None for others.
    """

    run: str
    state: str
    stage: str
    step: int | None
    steps: int | None
    loss: float | None
    seconds_left: float | None
    peak_rss_bytes: int | None
    hint: str
    error: dict[str, Any] | None
    verdict: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    asking: dict[str, Any] | None = None
    writing: dict[str, int] | None = None

    def text(self) -> str:
        """One line for people, and what came of the run or what to do next."""
        parts = [f"{self.run}: {self.state}"]
        if self.stage and self.state != "finished":
            parts.append(f"stage {self.stage}")
        if self.step is not None and self.state != "finished":
            parts.append(f"step {self.step} of {self.steps}" if self.steps else f"step {self.step}")
        if self.loss is not None and self.state != "finished":
            parts.append(f"loss {self.loss:.3f}")
        if self.seconds_left is not None and self.state == "running":
            parts.append(f"{clock(self.seconds_left)} left in this stage")
        if self.writing is not None:
            parts.append(f"{self.writing['done']} of {self.writing['total']} answers")
        if self.asking is not None:
            parts += self._asked()
        results = [self.verdict, *(f"{label:8} {path}" for label, path in self.outputs.items())]
        return "\n".join([" · ".join(parts), *filter(None, (self.hint, *results))])

    def _asked(self) -> list[str]:
        """What a served teacher has answered and what that costs."""
        asking = self.asking or {}
        said = [
            f"{asking['done']} of {asking['total']} answers",
            f"{asking['requests']} requests",
            str(asking["cost"]),
        ]
        left = asking.get("seconds_left")
        if self.state == "running" and self.stage == asking.get("stage") and left:
            said.append(f"{clock(left)} left in this stage")
        return said


def read_status(run_folder: Path) -> Status:
    """Read a run's state.

    Raises:
        RecipeError: the folder holds no run.
    """
    if not (run_folder / RECIPE).is_file():
        raise RecipeError(f"{run_folder} holds no run.", fix="Name a folder below runs/.")
    folder = RunDir(run_folder)
    state = folder.state()
    status = str(state.get("status", "unknown"))
    owner = folder.owner()
    if status == "running" and owner is None:
        status = "died"
    training = state.get("training") or {}
    last = last_step(training.get("metrics"))
    steps = training.get("steps")
    step = None if last is None else int(last["step"])
    left = None
    if last is not None and steps:
        left = (steps - int(last["step"])) * float(last["seconds"])
    error = state.get("error") if status == "failed" else None
    return Status(
        run=str(run_folder),
        state=status,
        stage=str(state.get("stage", "")),
        step=step,
        steps=steps,
        loss=None if last is None else float(last["loss"]),
        seconds_left=left,
        peak_rss_bytes=None if last is None else last.get("peak_rss_bytes"),
        hint=_hint(status, run_folder, last) if error is None else _reason(error),
        error=error,
        asking=_asking(state.get("asking")),
        writing=_writing(state),
        **(_results(run_folder, state) if status == "finished" else {}),
    )


def _asking(noted: Any) -> dict[str, Any] | None:
    """What a run noted of its served teacher, where that is whole."""
    wanted = {"done", "total", "requests", "cost"}
    return dict(noted) if isinstance(noted, dict) and noted.keys() >= wanted else None


def _writing(state: Mapping[str, Any]) -> dict[str, int] | None:
    """How many answers the stage that a run is in has written, workers' included; None for another stage."""
    noted = state.get("writing")
    if not isinstance(noted, dict) or noted.get("stage") != state.get("stage") or "journal" not in noted:
        return None
    journal = Path(str(noted["journal"]))
    if not journal.is_file():  # the stage is finished
        return None
    written = {(line.get("prompt"), line.get("sample")) for line in read_journals(journal)}
    return {"done": len(written), "total": int(noted.get("total", 0))}


def _results(run_folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What a finished run found and left, as it said itself."""
    files = {"summary": "summary.json", "student": "student", "report": "report.html"}
    places = {label: run_folder / name for label, name in files.items()}
    outputs = {label: str(place) for label, place in places.items() if place.exists()}
    return {"verdict": str(state.get("verdict", "")), "outputs": outputs}


def last_step(metrics: str | None) -> dict[str, Any] | None:
    """The last complete step line of a metrics file."""
    if not metrics or not Path(metrics).is_file():
        return None
    wanted = {"step", "loss", "seconds"}
    steps = [e for e in read_tail(Path(metrics)) if e.get("event") == "step" and e.keys() >= wanted]
    return steps[-1] if steps else None


def _hint(state: str, run_folder: Path, last: dict[str, Any] | None) -> str:
    if state == "interrupted":
        return goes_on(run_folder)
    if state != "died":
        return ""
    return f"{post_mortem(last)} {goes_on(run_folder)}"


def goes_on(recipe: Path, overrides: Sequence[str] = ()) -> str:
    """The command that continues a run, by its folder or its recipe, as a shell takes it."""
    return f"Continue with: {typed()} run {shlex.join([str(recipe), *overrides])}"


def _reason(error: dict[str, Any]) -> str:
    words = PotstillError(error["message"], fix=error["fix"], path=error["path"])
    return f"error: {words}"


def reason(error: Exception) -> PotstillError:
    """The error that a run folder keeps: what potstill raised on purpose, what the machine lacks, or a bug."""
    if isinstance(error, PotstillError):
        return error
    if isinstance(error, BrokenPipeError):
        return PotstillError(
            "the pipe that the run printed into was closed.",
            fix="Let it print into a file and run the same command again; it goes on.",
        )
    return (
        jobs.echo(error)
        or machine_error(error)
        or plugins.fault(error)
        or PotstillError(
            f"{type(error).__name__}: {error}.",
            fix="Please report it as a bug, with the lines that the run printed.",
        )
    )


FIXES = {
    errno.EACCES: "Give this user the right to use it, or choose another folder.",
    errno.EPERM: "Give this user the right to use it, or choose another folder.",
    errno.EROFS: "Choose another folder with `runs:`.",
    errno.ENOENT: "It was removed meanwhile, or its folder was; run the same command again.",
    errno.EIO: "Check the device or the connection to it, and run the same command again.",
    errno.ESTALE: "Mount the file system again, and run the same command again.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), and run the same command again.",
    errno.ENFILE: "Close other programs, and run the same command again.",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f), or use a file system that takes larger files.",
    errno.ELOOP: "Remove the links that lead in a circle, and run the same command again.",
    errno.EEXIST: "Move away what stands there, and run the same command again.",
    errno.EISDIR: "Move that folder away, and run the same command again.",
    errno.ENOTDIR: "Move the file away that stands where a folder belongs, and run the same command again.",
}


def machine_error(error: BaseException) -> MachineError | None:
    """What the machine lacks or refuses, in words; None when the error is not about the machine.

    Every OSError is about the machine. Libraries report a full disk or memory with errors of their own, so
    the words count as well.
    """
    text = "" if isinstance(error, OSError) else str(error).lower()
    quoted = re.search(r"os error (\d+)", text)
    number = error.errno if isinstance(error, OSError) else int(quoted[1]) if quoted else None
    if (
        isinstance(error, MemoryError)
        or number == errno.ENOMEM
        or "out of memory" in text
        or "can't allocate memory" in text
    ):
        return MachineError(
            "memory ran out.", fix="Lower micro_batch_tokens or batch_rows, or use a smaller model."
        )
    place = _place(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "no space left on device" in text:
        return MachineError(
            f"the disk is full{place}.", fix="Free space and run the same command again; it goes on."
        )
    if number is None and not isinstance(error, OSError):
        return None
    words = os.strerror(number) if number is not None else _first_line(error)
    fix = FIXES.get(number or 0, "See to it, and run the same command again.")
    return MachineError(f"{words}{place}.", fix=fix)


def _place(error: BaseException) -> str:
    if isinstance(error, OSError):
        names = [
            os.fsdecode(n) if isinstance(n, bytes) else str(n) for n in (error.filename, error.filename2) if n
        ]
    else:
        names = re.findall(r'at path "([^"]+)"', str(error))
    return f" at {' and '.join(names)}" if names else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def post_mortem(last: dict[str, Any] | None) -> str:
    """What a process that left no word was doing, and the likely cause."""
    import psutil

    if last is None:
        return "Its process ended without a word: killed, or the machine went down."
    peak, total = int(last.get("peak_rss_bytes") or 0), psutil.virtual_memory().total
    cause = (
        "likely the kernel killed it for memory: lower micro_batch_tokens"
        if peak > 0.8 * total
        else "likely it was killed from outside, or the machine went down"
    )
    return (
        f"Its process ended without a word after step {last['step']}; it had held {peak / 1e9:.1f} of "
        f"{total / 1e9:.1f} GB; {cause}."
    )
