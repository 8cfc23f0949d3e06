"""What the store holds is listed with the runs that refer to it, and what none refers to is freed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from builders import places
from builders.cli import potstill
from potstill.store import disk, unpacking
from potstill.store.artifacts import Store

STAGES = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {samples: 2, resamples: 100}}]"

MEASURED = {"evaluate", "greedy", "scores"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs that share the teacher's answers and the untrained student."""
    place = places.write(tmp_path_factory.mktemp("made"), stages=STAGES)
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    assert potstill("run", "r.yaml", "name=two", "distill.steps=2", cwd=place).returncode == 0
    return place


@pytest.fixture
def two(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place", symlinks=True))


def stored(place: Path) -> set[str]:
    return {path.name for path in (place / "runs/.store").iterdir()} - {".locks"}


def users(place: Path, *arguments: str) -> dict[str, list[str]]:
    done = potstill("store", "ls", "--json", *arguments, cwd=place)
    assert done.returncode == 0, done.stderr
    return {entry["name"]: entry["runs"] for entry in json.loads(done.stdout)["entries"]}


def freed(place: Path) -> set[str]:
    """What `gc` lists, which is what it then frees and no more."""
    before = stored(place)
    listed = json.loads(potstill("store", "gc", "--json", cwd=place).stdout)
    assert stored(place) == before
    done = potstill("store", "gc", "--yes", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["entries"] == listed["entries"]
    assert result["freed_bytes"] == listed["freeable_bytes"] == sum(e["bytes"] for e in result["entries"])
    gone = {entry["name"] for entry in result["entries"]}
    assert stored(place) == before - gone
    return gone


def test_every_artifact_is_listed_with_the_runs_that_refer_to_it(two):
    by_kind: dict[str, list[list[str]]] = {}
    for name, runs in users(two).items():
        by_kind.setdefault(name.partition("-")[0], []).append(runs)
    alone = [["r"], ["two"]]
    assert {kind: sorted(runs) for kind, runs in by_kind.items()} == {
        "generate": [["r", "two"]], "student": [["r", "two"]], "train": alone, "evaluate": alone,
        # The teacher's and the untrained student's are the same.
        "greedy": [["r"], ["r", "two"], ["r", "two"], ["two"]], "scores": [["r"], ["r", "two"], ["two"]],
    }  # fmt: skip
    text = potstill("store", "ls", cwd=two).stdout
    for words in (
        "24 answers of the teacher",
        "student before training",
        "student after 2 steps",
        "evaluation",
    ):
        assert words in text
    assert re.search(r"student after 1 step\s", text)
    assert text.endswith("; runs refer to all of it\n")


@pytest.mark.parametrize("named", ["runs", "runs/two", "runs/.store"])
def test_a_store_is_found_by_the_folder_of_runs_by_a_run_and_by_itself(two, named):
    assert users(two, named) == users(two)


def test_a_place_without_a_store_is_refused(tmp_path):
    done = potstill("store", "ls", cwd=tmp_path)
    assert done.returncode == 2
    assert "runs has no store" in done.stderr


def test_a_deleted_run_frees_what_it_alone_referred_to(two):
    assert freed(two) == set()
    shutil.rmtree(two / "runs/two")
    assert re.search(r"; no run refers to \d.*B of it\n$", potstill("store", "ls", cwd=two).stdout)
    kinds = sorted(name.partition("-")[0] for name in freed(two))
    assert kinds == ["evaluate", "greedy", "scores", "train"]
    done = potstill("run", "r.yaml", cwd=two)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("unchanged, taken from") == 4
    assert potstill("report", "runs/r", cwd=two).returncode == 0


def test_what_a_failed_run_has_made_is_its_own(tmp_path):
    """All answers are cut, so no stage ended and none is linked; the next run takes the answers from the store."""
    place = places.write(tmp_path, stages="[{generate: {max_new_tokens: 1}}, {distill: {steps: 1}}]")
    assert potstill("run", "r.yaml", cwd=place).returncode == 2
    assert [runs for name, runs in users(place).items() if name.startswith("generate-")] == [["r"]]
    assert freed(place) == set()


def test_a_summary_refers_to_what_it_was_made_from(two):
    """`potstill run --until distill` leaves no link to the evaluation, and report and card still show its figures."""
    card = two / "runs/two/student/README.md"
    before = card.read_bytes()
    assert b"| KL(teacher" in before
    assert potstill("run", "--until", "distill", "runs/two", cwd=two).returncode == 0
    assert card.read_bytes() == before
    assert freed(two) == set()


def test_a_student_that_a_run_still_shows_is_in_use(tmp_path):
    """`potstill run --until generate` leaves no link to the training and a summary without it, and the student stays."""
    place = places.write(
        tmp_path, stages="[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}]"
    )
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    assert potstill("run", "--until", "generate", "r.yaml", cwd=place).returncode == 0
    assert (place / "runs/r/student/model.safetensors").is_file()
    assert [runs for name, runs in users(place).items() if name.startswith("train-")] == [["r"]]
    assert freed(place) == set()


def test_everything_is_kept_where_an_artifact_does_not_say_what_it_was_made_from(two):
    (damaged,) = [path for path in (two / "runs/r/stages").iterdir() if path.name == "distill"]
    (damaged / "manifest.json").write_text("{}")
    shutil.rmtree(two / "runs/two")
    assert freed(two) == set()


def unfinished(place: Path, owner: str | None, status: str = "interrupted") -> str:
    """Half a training in the store, begun by the run `owner`; None: by an earlier version, which says nothing."""
    folder = place / "runs/.store/.building-train-0123456789abcdef"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}\n")
    if owner is not None:
        (folder / ".runs").write_text(f"{owner}\n")
    state = place / "runs/two/run.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"status": status}))
    return folder.name


@pytest.mark.parametrize(
    ("owner", "status", "kept"),
    [
        ("two", "interrupted", True),
        ("two", "finished", True),
        ("three", "interrupted", False),
        (None, "interrupted", True),
        (None, "finished", False),
    ],
)
def test_unfinished_work_is_kept_as_long_as_a_run_may_go_on_with_it(two, owner, status, kept):
    name = unfinished(two, owner, status)
    assert (name not in freed(two)) is kept


def test_a_renamed_run_keeps_its_unfinished_work(two):
    name = unfinished(two, "two")
    (two / "runs/two").rename(two / "runs/renamed")
    assert freed(two) == set()
    assert users(two)[name] == ["renamed"]


def test_work_that_is_begun_is_signed_by_its_run_and_the_artifact_is_not(tmp_path):
    store = Store(tmp_path / ".store", run=tmp_path / "r")
    assert (store.work("train", "k" * 64) / ".runs").read_text() == "r\n"
    store.work("train", "k" * 64)
    replaced = Store(tmp_path / ".store", run=tmp_path / "s")
    assert (replaced.work("train", "k" * 64) / ".runs").read_text() == "r\ns\n"
    artifact = store.finish("train", "k" * 64, {}, {})
    assert [path.name for path in artifact.path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    "name", [".0123.gone", ".train-0123456789abcdef.aside-1", ".building-train-0123456789abcdef"]
)
def test_leftovers_without_an_owner_are_freed(two, name):
    (two / "runs/.store" / name).mkdir()
    if "building" not in name:
        (two / "runs/.store" / name / "file").write_text("1234")
    assert freed(two) == {name}


@pytest.mark.parametrize("name", ["mine", ".mine", "train-mine"])
def test_what_is_not_potstills_stays(two, name):
    (two / "runs/.store" / name).mkdir()
    assert freed(two) == set()


def test_nothing_is_freed_while_a_run_works_with_the_store(two):
    shutil.rmtree(two / "runs/two")
    before = stored(two)
    with Store(two / "runs/.store").in_use():
        assert "a run works with this store" in potstill("store", "gc", cwd=two).stdout
        done = potstill("store", "gc", "--yes", cwd=two)
    assert done.returncode == 2
    assert "nothing is freed: a run works with this store" in done.stderr
    assert stored(two) == before


def test_what_a_process_builds_is_kept(two):
    name = unfinished(two, "three")
    key = name.rpartition("-")[2].ljust(64, "0")
    with Store(two / "runs/.store").alone("train", key):
        assert freed(two) == set()


def test_a_kill_while_something_is_deleted_leaves_nothing_that_cannot_be_freed(two, monkeypatch):
    shutil.rmtree(two / "runs/two")

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "_remove", killed)
        assert potstill("store", "gc", "--yes", cwd=two).returncode != 0
    assert [name for name in stored(two) if name.endswith(".gone")]
    freed(two)
    assert {name.partition("-")[0] for name in stored(two)} == {"generate", "student", "train", *MEASURED}
    assert set(users(two)) == stored(two)


def test_a_run_folder_that_is_a_link_keeps_what_it_refers_to_wherever_it_is(two, tmp_path):
    """Without the link the store has its own note; without the folder nobody knows, and nothing is freed."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/three").mkdir()
    (two / "runs/three").symlink_to(tmp_path / "disk/three")
    assert potstill("run", "r.yaml", "name=three", "distill.steps=3", cwd=two).returncode == 0
    done = potstill("run", "runs/three", cwd=two)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("unchanged, taken from") == 4
    assert "its artifacts are in" in done.stderr
    assert not (tmp_path / "disk/.store").exists()
    assert freed(two) == set()
    (two / "runs/three").unlink()
    assert freed(two) == set()
    assert [str(tmp_path / "disk/three")] in users(two).values()
    (tmp_path / "disk/three").rename(tmp_path / "disk/away")
    done = potstill("store", "gc", "--yes", cwd=two)
    assert done.returncode == 2
    assert "disk/three, which is not there" in done.stderr
    (note,) = (two / "runs/.store/.runs").iterdir()
    note.unlink()
    assert {name.partition("-")[0] for name in freed(two)} == {"train", *MEASURED}


def test_a_link_that_leads_nowhere_may_be_a_run_on_another_disk(two, tmp_path):
    shutil.rmtree(two / "runs/two")
    (two / "runs/two").symlink_to(tmp_path / "unmounted/two")
    done = potstill("store", "gc", "--yes", cwd=two)
    assert done.returncode == 2
    assert "unmounted/two, which is not there" in done.stderr


def test_a_loop_of_links_beside_the_runs_is_named(two):
    (two / "runs/loop").symlink_to(two / "runs/loop")
    done = potstill("store", "gc", "--yes", cwd=two)
    assert done.returncode == 2
    assert "runs/loop names the run" in done.stderr


def test_a_link_to_an_artifact_keeps_it(two):
    (train,) = [name for name, runs in users(two).items() if name.startswith("train") and runs == ["two"]]
    (two / "runs/best").symlink_to(two / "runs/.store" / train / "student")
    shutil.rmtree(two / "runs/two")
    assert {name.partition("-")[0] for name in freed(two)} == MEASURED


def test_half_unpacked_models_are_freed_once_nobody_unpacks_them(two, tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    with unpacking.begun() as folder:
        (folder / "weights").write_text("12345")
        listed = json.loads(potstill("store", "gc", "--json", cwd=two).stdout)
        assert listed["entries"] == []
        left = Path(shutil.copytree(folder, folder.with_name(".unpacking-left")))
    done = json.loads(potstill("store", "gc", "--yes", "--json", cwd=two).stdout)
    assert [entry["name"] for entry in done["entries"]] == [".unpacking-left"]
    assert done["freed_bytes"] == 5
    assert not left.exists()
