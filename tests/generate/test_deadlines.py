"""Replies whose time is up are ended, in whatever order they began."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace
from typing import Any

from potstill.generate.deadlines import Deadlines


def response(connection: socket.socket) -> Any:
    stream = SimpleNamespace(get_extra_info=lambda name: connection)
    return SimpleNamespace(extensions={"network_stream": stream})


def test_a_reply_with_less_time_is_ended_although_the_thread_waits_for_a_later_one() -> None:
    deadlines = Deadlines()
    (late, late_end), (soon, soon_end) = socket.socketpair(), socket.socketpair()
    with late, late_end, soon, soon_end:
        now = time.monotonic()
        with (
            deadlines.watching(response(late), now + 600) as first,
            deadlines.watching(response(soon), now + 0.02) as second,
        ):
            assert soon.recv(1) == b""  # shut
            assert (first.ended, second.ended) == (False, True)
        # Its thread still means to look at the end of the first, which was read in time.
        with deadlines.watching(response(late), now + 0.04) as third:
            assert late.recv(1) == b""
            assert third.ended
    deadlines.close()
