"""The helpers of the benchmarks; no test here times anything."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch

from builders import scripts


@pytest.fixture(scope="module")
def protocol() -> ModuleType:
    return scripts.load("benchmarks/protocol.py")


def replay(protocol, names, script, rounds, warm_up=0):
    """Interleave contenders on a clock that reads (wall, cpu) from `script`; returns the order of calls too."""
    calls: list[str] = []
    samples = iter(script)
    contenders = {name: (lambda name=name: calls.append(name)) for name in names}

    def clock(action):
        action()
        return protocol.Sample(*next(samples))

    return protocol.interleave(contenders, rounds, warm_up=warm_up, measure=clock), calls


def test_contenders_take_turns_so_that_drift_cancels(protocol):
    _, calls = replay(protocol, "AB", [(1.0, 1.0)] * 8, rounds=4)
    assert "".join(calls) == "ABBAABBA"


def test_warming_up_is_not_timed(protocol):
    timings, calls = replay(protocol, "AB", [(1.0, 1.0)] * 2, rounds=1, warm_up=2)
    assert "".join(calls) == "ABABAB"
    assert len(timings.rounds) == 1


def test_a_round_in_which_one_contender_waited_is_dropped_whole_and_repeated(protocol):
    a_then_b, b_then_a, again = [(1, 1), (2, 2)], [(5, 1), (2, 2)], [(1.2, 1), (4, 4)]
    timings, _ = replay(protocol, "AB", a_then_b + b_then_a + again, rounds=2)
    assert timings.discarded == 1
    assert not timings.noisy
    assert timings.ratios("A", "B") == [1 / 2, 1 / 4]


def test_when_every_round_is_disturbed_the_figure_says_so(protocol):
    timings, _ = replay(protocol, "AB", [(9.0, 1.0)] * 8, rounds=2)
    assert timings.noisy
    assert len(timings.rounds) == 4


def test_ratios_are_taken_round_by_round_against_the_fastest_peer(protocol):
    timings, _ = replay(protocol, "ABC", [(1, 1), (4, 4), (2, 2), (9, 9), (3, 3), (3, 3)], rounds=2)
    assert timings.ratios("A", "B", "C") == [1 / 2, 3 / 3]
    assert protocol.spread([0.5, 1.0, 3.0]) == {"median": 1.0, "min": 0.5, "max": 3.0}


@pytest.mark.parametrize(
    ("value", "bar", "better", "ok"),
    [
        (0.8, 0.8, "lower", True),
        (0.81, 0.8, "lower", False),
        (2.0, 2.0, "higher", True),
        (1.9, 2.0, "higher", False),
        (None, 2.0, "higher", None),
        (1.0, None, "lower", None),
        (float("nan"), 1.0, "lower", False),
    ],
)
def test_a_figure_is_compared_with_its_bar_in_its_own_direction(protocol, value, bar, better, ok):
    assert protocol.Figure("f", value, "ratio", bar, better).ok is ok


def test_every_figure_is_one_json_line_and_one_line_of_the_table(protocol, tmp_path, capsys):
    target = tmp_path / "figures.jsonl"
    target.write_text("an earlier run\n")
    report = protocol.Report("title", str(target))
    report.add(
        protocol.Figure("missed", 2.0, "ratio", 1.0, contenders={"peer": {"seconds": 3}}, shape={"n": 4})
    )
    report.add(protocol.Figure("unknown", None, "MB", 1.0, note="the peer is not installed"))
    first, second = map(json.loads, target.read_text().splitlines())
    assert set(first) == {"name", "value", "unit", "bar", "ok", "contenders", "shape", "versions", "machine"}
    assert (first["ok"], first["shape"], first["contenders"]) == (False, {"n": 4}, {"peer": {"seconds": 3}})
    assert (second["value"], second["ok"]) == (None, None)
    assert second["note"] == "the peer is not installed"
    shown = capsys.readouterr().out
    assert "MISSED peer 3" in shown
    assert "the peer is not installed" in shown


def test_json_on_stdout_is_not_mixed_with_the_table(protocol, capsys):
    protocol.Report("title", "-").add(protocol.Figure("one", 1.0, "ratio"))
    out, err = capsys.readouterr()
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["one"]
    assert "title" in err


def test_the_peak_counts_memory_that_was_released(protocol):
    megabytes = 64

    def action():
        torch.ones(megabytes * 2**20, dtype=torch.uint8)

    try:
        peak = protocol.peak_over(action)
    except PermissionError:
        pytest.skip("this kernel does not let a process reset its peak")
    assert 0.9 * megabytes * 2**20 < peak < 1.5 * megabytes * 2**20


def test_a_task_in_a_process_of_its_own_returns_its_last_line(protocol, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "task = json.loads(sys.argv[2])\n"
        "print('chatter')\n"
        "print(json.dumps([task['name'], task['options'], os.environ['OMP_NUM_THREADS']]))\n"
    )
    assert protocol.alone(str(script), "count", threads=3, n=5) == ["count", {"n": 5}, "3"]


def test_a_task_that_dies_in_its_process_is_an_error(protocol, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('out of memory')\n")
    with pytest.raises(RuntimeError, match="out of memory"):
        protocol.alone(str(script), "count", threads=1)
