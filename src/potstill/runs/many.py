"""Start a run in several processes of this machine, as its recipe and devices ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.devices import jobs, placement
from potstill.devices.launch import launch
from potstill.errors import Interrupted, PotstillError
from potstill.runs import setup
from potstill.store.folder import RunDir


def launched(recipe: str | Path, overrides: Sequence[str], arguments: Sequence[str]) -> bool:
    """Run `potstill` with these arguments once for each device, and say whether there was more than one.

    In a job that has started its own processes nothing is started.

    Raises:
        PotstillError: why the process that failed first has ended.
    """
    if jobs.processes() is not None:
        return False
    wanted = setup.open_recipe(recipe, overrides).recipe
    asked = wanted.devices.processes
    count = placement.processes(None if asked == "auto" else asked, wanted.devices.apart)
    if count == 1:
        return False
    try:
        launch(arguments, count)
    except Interrupted:
        raise
    except PotstillError as error:
        # The first process may know no more than that another one has ended.
        RunDir(Path(wanted.runs) / wanted.name).update_at_end({"status": "failed", "error": error.as_dict()})
        raise
    return True
