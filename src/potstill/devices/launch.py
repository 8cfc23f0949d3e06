"""Start a command once for every device, with torchrun's elastic agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.devices import jobs
from potstill.errors import Interrupted, MachineError, PotstillError

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
SECONDS_TO_STOP = 45  # then a process that does not end by itself is killed


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run `potstill` with these arguments in so many processes of this machine, until all have ended.

    Raises:
        PotstillError: the reason of the process that failed first, with its exit code.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What its processes say is enough; the agent repeats it in lines of its own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a server of the agent's own
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, LOOPBACK)
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # torch 2.11 has no such setting; its agent waits for 30 seconds.
    patience: dict[str, Any] = {
        name: SECONDS_TO_STOP for name in LaunchConfig.__dataclass_fields__ if name == "shutdown_timeout"
    }
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        os.environ[jobs.LAUNCHED] = folder
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(folder, "agents")),
            rdzv_configs={"store_type": "file"},  # a server would listen on every interface
            max_restarts=0,
            **patience,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "potstill", *arguments)
        except SignalException as stop:
            raise jobs.reason(Path(folder)) or Interrupted(
                "stopped by a signal.", signal_number=int(stop.sigval)
            ) from None
        except ChildFailedError as failed:
            codes = {number: failure.exitcode for number, failure in failed.failures.items()}
            raise jobs.reason(Path(folder)) or _without_a_word(codes, Path(folder)) from None
        finally:
            del os.environ[jobs.LAUNCHED]


def _without_a_word(codes: Mapping[int, int], folder: Path) -> PotstillError:
    """What to say where no process has left a cause: at best an echo of one that was killed, or the agent's SIGTERM."""

    def guess(number: int) -> tuple[bool, bool]:
        return (folder / f"{number}.json").is_file(), codes[number] == -signal.SIGTERM

    number = min(codes, key=guess)
    exit_code = codes[number]
    how = f"with exit code {exit_code}" if exit_code >= 0 else f"by {signal.Signals(-exit_code).name}"
    return MachineError(
        f"process {number} ended {how}, without a word.",
        fix="Likely memory ran out: lower micro_batch_tokens, or use fewer processes.",
    )
