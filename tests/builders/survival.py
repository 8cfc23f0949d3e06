"""Tries mutated cases on the command line and says which of them end with anything but a result or a sentence."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from builders.cases import KINDS
from builders.cases.place import empty
from builders.cli import Done, potstill

CODES = (0, 2, 3, 4)
BUSY, WAITING = 5.0, 40.0  # seconds of work, and of time on the clock
MEMORY = 12 * 2**30
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Hang(BaseException):
    """A command took too long."""


def faults(kind: str, numbers: Sequence[int], place: Path) -> Iterator[tuple[int, str]]:
    """Try the cases of these numbers in a prepared folder; yields each with its fault, "" for none."""
    for number in numbers:
        empty(place)
        case = KINDS[kind](place, random.Random(f"{kind} {number}"))
        fault = next(filter(None, (fault_of(command, place) for command in case.commands)), "")
        yield number, fault and f"{kind} {number}: {case.what}\n{fault}"


def fault_of(command: Sequence[str], place: Path) -> str:
    """What is wrong with the end of a command; "" for nothing."""

    def stop(*_: Any) -> None:
        raise Hang

    for timer, number, limit in (
        (signal.ITIMER_PROF, signal.SIGPROF, BUSY),
        (signal.ITIMER_REAL, signal.SIGALRM, WAITING),
    ):
        signal.signal(number, stop)
        signal.setitimer(timer, limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = potstill(*command, cwd=place)
    except Hang:
        return f"{' '.join(command)} takes longer than {BUSY} s"
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
    problem = _problem(done, "--json" in command)
    return problem and f"{' '.join(command)[:200]} exits {done.returncode}{problem}: {done.stderr[-3000:]}"


def _problem(done: Done, as_json: bool) -> str:
    if done.returncode not in CODES or "Traceback" in done.stderr or "bug in potstill" in done.stderr:
        return " with a fault"
    if done.returncode and done.returncode != 4 and "error: " not in done.stderr.lower():
        return " without an error"
    if controls := UNSEEN.findall(done.stdout + done.stderr):
        return f" and prints {controls[:5]!r}"
    if as_json and done.stdout:
        try:
            json.loads(done.stdout)
        except ValueError as error:
            return f" and prints no JSON ({error})"
    return ""


def faults_of_child(kind: str, numbers: Sequence[int], place: Path) -> Iterator[tuple[int, str]]:
    """The same in a process of its own, for what could end it; a new one goes on behind a case that did."""
    left = list(numbers)
    while left:
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(target=_serve, args=(kind, left, place, theirs))
        child.start()
        theirs.close()
        try:
            while left and ours.poll(2 * WAITING):
                number, fault = ours.recv()
                left.remove(number)
                yield number, fault
        except EOFError:
            pass
        child.kill()
        child.join()
        ours.close()
        if left:
            number = left.pop(0)
            yield number, f"{kind} {number} ends its process, or never ends"


def _serve(kind: str, numbers: Sequence[int], place: Path, pipe: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for answer in faults(kind, numbers, place):
        pipe.send(answer)
