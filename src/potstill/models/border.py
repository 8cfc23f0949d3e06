"""The border to libraries that read and write models: what they raise becomes one sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from potstill.errors import ModelError, PotstillError

LONGEST = 400  # characters of a library's reason
# Of these the machine is the reason and not the file: exit code 3, as everywhere else.
ERRORS = {
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.EFBIG,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EDQUOT,
}
MACHINE = ("out of memory", "can't allocate memory", "os error 28", "no space left on device")


@contextmanager
def border(action: str, fix: str, *, passes: type[Exception] = PotstillError) -> Iterator[None]:
    """Silence transformers, and turn whatever is raised inside into a ModelError, but for the machine's limits.

    A list of foreseen types would never be complete.

    Args:
        action: what failed, such as "cannot read FILE".
        passes: a type that is left as it is, such as a disk's errors while saving.
    """
    try:
        with quiet():
            yield
    except (PotstillError, passes):
        raise
    except BaseException as error:
        # A panic of the tokenizers library is no Exception.
        foreign = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not foreign or _of_the_machine(error):
            raise
        raise ModelError(f"{action}: {_reason(error)}", fix=fix) from error


def _of_the_machine(error: BaseException) -> bool:
    """Whether memory or disk ran out or failed, which is said elsewhere."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in ERRORS):
        return True
    return any(words in str(error).lower() for words in MACHINE)


def _reason(error: BaseException) -> str:
    """The first line of what a library says, with the type where the words alone say nothing."""
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:LONGEST]
    if isinstance(error, OSError | ValueError | RuntimeError | ImportError) and words:
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars and advice; errors still raise."""
    from transformers.utils import logging as their_logging

    level, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        their_logging.set_verbosity(level)
        if bars:
            their_logging.enable_progress_bar()
