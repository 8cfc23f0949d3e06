"""A capture by itself: a share that is stopped or ends at its deadline, and a repair."""

from __future__ import annotations

import json
import os
import signal

import pytest
from typer.testing import CliRunner

from builders import places
from builders.captures import hashes
from builders.repairs import watched_rows
from builders.tiny import save_tiny
from potstill.cache.mending import Mender
from potstill.cache.writer import Writer
from potstill.cli import app
from potstill.console import Console
from potstill.errors import ArtifactError, Interrupted, RecipeError
from potstill.runs import shares
from potstill.runs.run import run
from potstill.stages import _capture
from potstill.stages._entries import Entries

QUIET = Console(quiet=True)
STAGES = "[{capture: {batch_tokens: 8, shard_bytes: 1024, signal: hidden}}]"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A recipe, and what an undisturbed run of it leaves in `calm`."""
    folder = tmp_path_factory.mktemp("shares")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_tiny(folder / "student", layers=1, seed=3)
        teacher = "{model: teacher, dtype: float32}"
        # Enough rows for several parts of several blocks.
        places.write(folder, places.answered(90), student="{model: student}", teacher=teacher, stages=STAGES)
        run("r.yaml", ["runs=calm"], console=QUIET)
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)


def cache(place, runs: str) -> dict[str, str]:
    """The bytes of the caches that a run captured."""
    folder = (place / runs / "r/stages/capture").resolve()
    return {name: value for name, value in hashes(folder).items() if "/" in name}


def test_a_share_that_is_stopped_ends_behind_its_block_and_says_how_it_goes_on(place, monkeypatch):
    written, add = [], Writer.add_block

    def stopping(self, entries):
        add(self, entries)
        written.append(len(entries))
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "add_block", stopping)
        with pytest.raises(
            Interrupted, match=r"kept\. Continue with: .*potstill capture r.yaml runs=cut --shard 2/2"
        ) as caught:
            shares.capture_share("r.yaml", ["runs=cut"], (1, 2), QUIET)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert len(written) == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    for share in ((1, 2), (0, 2)):
        assert "is written; when all are" in shares.capture_share("r.yaml", ["runs=cut"], share, QUIET)
    run("r.yaml", ["runs=cut"], console=QUIET)
    assert cache(place, "cut") == cache(place, "calm")


def test_a_share_of_a_finished_cache_writes_nothing(place, monkeypatch):
    """Neither a copy beside it, nor, where it is damaged, a second one from nothing."""
    monkeypatch.setattr(Entries, "_said", lambda *given: pytest.fail("the teacher is asked"))
    assert "is written" in shares.capture_share("r.yaml", ["runs=calm"], (0, 2), QUIET)
    assert not [*(place / "calm/.store").glob(".building-capture-*")]
    manifest = (place / "calm/r/stages/capture").resolve() / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text("{}")
    with pytest.raises(ArtifactError, match="run makes it again"):
        shares.capture_share("r.yaml", ["runs=calm"], (0, 2), QUIET)
    assert not [*(place / "calm/.store").glob(".building-capture-*")]
    manifest.write_text(whole)


def test_a_deadline_is_that_of_each_share(place, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_capture.time, "monotonic", lambda: now.append(now[-1] + 1.0) or now[-1])
    how = ["runs=short", "capture.deadline=2s"]
    for share in ((0, 2), (1, 2)):
        said = shares.capture_share("r.yaml", how, share, QUIET)
        assert "written up to the deadline" in said


def test_a_run_behind_shares_that_came_to_their_deadline_asks_about_no_further_row(place, monkeypatch):
    how, now = ["runs=late", "capture.deadline=1h"], [0.0]
    assert "is written" in shares.capture_share("r.yaml", how, (0, 2), QUIET)
    with monkeypatch.context() as patch:  # a clock on which the deadline is over at once
        patch.setattr(_capture.time, "monotonic", lambda: now.append(now[-1] + 3600.0) or now[-1])
        assert "up to the deadline" in shares.capture_share("r.yaml", how, (1, 2), QUIET)
    asked = watched_rows(monkeypatch)
    run("r.yaml", how, console=QUIET)
    facts = json.loads((place / "late/r/stages/capture/manifest.json").read_text())["facts"]
    assert 0 < facts["rows"] < facts["planned_rows"]
    assert asked == []


def test_shares_begin_with_what_a_capture_with_another_deadline_has_written(place, monkeypatch):
    run("r.yaml", ["runs=more", "capture.deadline=1h"], console=QUIET)
    asked = watched_rows(monkeypatch)
    for share in ((1, 2), (0, 2)):
        assert "is written; when all are" in shares.capture_share("r.yaml", ["runs=more"], share, QUIET)
    run("r.yaml", ["runs=more"], console=QUIET)
    assert asked == []
    assert cache(place, "more") == cache(place, "calm")


def test_a_repair_makes_a_damaged_capture_whole_and_leaves_a_whole_one(place):
    run("r.yaml", ["runs=torn"], console=QUIET)
    (shard, *_) = sorted((place / "torn/r/stages/capture/signals").glob("shard-*.bin"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert cache(place, "torn") != cache(place, "calm")
    runner = CliRunner()
    verified = runner.invoke(app, ["cache", "verify", "torn/r/stages/capture"])
    assert verified.exit_code == 4
    assert "capture RECIPE --repair" in verified.stdout
    mended = json.loads(runner.invoke(app, ["capture", "r.yaml", "runs=torn", "--repair", "--json"]).stdout)
    assert len(mended["damage"]) == 1
    assert cache(place, "torn") == cache(place, "calm")
    damage, said = shares.repair("r.yaml", ["runs=torn"], QUIET)
    assert damage == []
    assert "nothing was damaged" in said


def test_a_repair_that_a_signal_stopped_goes_on_and_says_what_was_damaged(place, monkeypatch):
    run("r.yaml", ["runs=stopped"], console=QUIET)
    for shard in sorted((place / "stopped/r/stages/capture/signals").glob("shard-*.bin"))[:2]:
        raw = bytearray(shard.read_bytes())
        raw[-1] ^= 1
        shard.write_bytes(raw)
    put = Mender.put

    def stopping(self, entries):
        os.kill(os.getpid(), signal.SIGTERM)
        return put(self, entries)

    with monkeypatch.context() as patch:
        patch.setattr(Mender, "put", stopping)
        with pytest.raises(Interrupted, match=r"Continue with: .*capture r.yaml runs=stopped --repair"):
            shares.repair("r.yaml", ["runs=stopped"], QUIET)
    damage, said = shares.repair("r.yaml", ["runs=stopped"], QUIET)
    assert len(damage) == 2
    assert "2 damaged places are mended" in said
    assert cache(place, "stopped") == cache(place, "calm")
    assert not [*(place / "stopped/.store").glob(".*aside*")]


def test_a_recipe_without_a_capture_has_nothing_to_repair(place):
    with pytest.raises(RecipeError, match="no capture stage"):
        shares.repair("r.yaml", ["stages=[evaluate]"], QUIET)
