"""The job that this process belongs to, read from its environment: torchrun, accelerate, SLURM, or none."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from potstill.errors import Interrupted, MachineError, PotstillError

LAUNCHED = "POTSTILL_REASONS"  # the folder into which a process that potstill started writes why it ended


def processes(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of processes of the job that started this one, None where nobody started several."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["WORLD_SIZE"])
    # A batch script has a number of tasks too, but it is alone until it calls srun.
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in environment:
        return int(environment["SLURM_NTASKS"])
    return None


def number(environment: Mapping[str, str] = os.environ) -> int:
    """The number of this process in its job, 0 in none."""
    if processes(environment) is None:
        return 0
    return int(environment.get("RANK", environment.get("SLURM_PROCID", "0")))


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Say in torch's words what SLURM says in its own, where its tasks were started without torchrun.

    Raises:
        MachineError: the first machine's name cannot be read.
    """
    if "RANK" in environment or processes(environment) is None:
        return
    names = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    host = environment.get("MASTER_ADDR") or first_host(names)
    if not host:
        raise MachineError(
            f"the first machine of this job cannot be read from SLURM's list {names!r}.",
            fix="Export MASTER_ADDR with its name.",
        )
    words = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": host,
        # The same on all machines of a job, another one for another job.
        "MASTER_PORT": environment.get("MASTER_PORT")
        or str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000),
    }
    environment.update(words)


def first_host(names: str) -> str:
    """The first name of SLURM's list: `gpu[03-07,12],cpu1` begins with gpu03."""
    found = re.match(r"([^,\[\s]+)(?:\[(\w+)[^\]]*\]([^,\s]*))?", names)
    return "" if found is None else "".join(part or "" for part in found.groups())


def echo(error: BaseException) -> MachineError | None:
    """What to say of an error that only says that another process no longer answers; None of any other."""
    text = f"{type(error).__name__}: {error}"
    if processes() is None or not re.search(r"Connection (closed|reset) by peer|gloo|NCCL|DistBackend", text):
        return None
    return MachineError("another process of this run has ended.", fix="See what it printed.")


def leave_reason(error: PotstillError, *, echo: bool = False) -> None:
    """Write why this process ends into the folder that its starter reads.

    `echo` marks an error that only says that another process has gone.
    """
    place = Path(os.environ[LAUNCHED], f"{number()}.json")
    words = {**error.as_dict(), "time": time.time(), "echo": echo}
    place.write_text(json.dumps(words), encoding="utf-8")


def reason(folder: Path) -> PotstillError | None:
    """Why a run of several processes ended: the earliest reason that is not the echo of another one."""
    reasons: list[dict[str, Any]] = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    causes = [words for words in reasons if not words["echo"]]
    if not causes:
        return None
    earliest = min(causes, key=lambda words: words["time"])
    message, fix, code = earliest["message"], earliest["fix"], earliest["exit_code"]
    if earliest["code"] == Interrupted.code:
        return Interrupted(message, signal_number=code - 128, fix=fix)
    error = PotstillError(message, fix=fix, path=earliest["path"])
    error.exit_code, error.code, error.retryable = code, earliest["code"], earliest["retryable"]
    return error
