"""Whether the hub can be reached: asked once, where its own client would try again and again for every file."""

from __future__ import annotations

import glob
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 5.0  # seconds until a hub that gives no answer counts as out of reach
ASK_AGAIN = 60.0  # seconds; a network may come back

_answer: tuple[str, float] | None = None  # why the hub is out of reach ("": it is not), and when it was asked


@contextmanager
def within_reach() -> Iterator[str]:
    """Let libraries use the hub, or their cache alone where it cannot be reached; gives the reason, else "".

    A user's own HF_HUB_OFFLINE stays, and nothing is asked then.
    """
    from huggingface_hub import constants

    why = "" if constants.HF_HUB_OFFLINE else unreachable()
    if not why:
        yield ""
        return
    # datasets keeps a copy.
    switches: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [module.HF_HUB_OFFLINE for module in switches]
    try:
        for module in switches:
            module.HF_HUB_OFFLINE = True
        yield why
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value


def cached_as(name: str) -> list[str]:
    """The models of this name, without their organisations, in the hub's cache on this machine."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob(f"models--*--{glob.escape(name)}")
    return sorted(folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders)


def unreachable() -> str:
    """Why the hub cannot be reached, "" where it can. Any answer counts, whatever it says."""
    global _answer
    if _answer is not None and (not _answer[0] or time.monotonic() - _answer[1] < ASK_AGAIN):
        return _answer[0]
    _answer = _ask(), time.monotonic()
    return _answer[0]


def _ask() -> str:
    reasons = [f"no answer within {PATIENCE:.0f} seconds"]
    # Looking up a name knows no limit of time, so it must be possible to leave it.
    question = threading.Thread(target=lambda: reasons.append(_reason()), daemon=True)
    question.start()
    question.join(PATIENCE)
    return reasons[-1]


def _reason() -> str:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    return ""
