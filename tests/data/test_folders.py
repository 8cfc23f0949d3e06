"""Which files a folder means: a saved data set's own list, one split, or a sentence with what to write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from builders.chats import write_lines
from potstill.data.rows import read_rows
from potstill.errors import DataError
from potstill.recipe.inputs import DataSpec
from potstill.runs.rows import read_data


def prompts(name: str | Path) -> list[str]:
    return [row.prompt_text for row in read_rows([str(name)]).rows]


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, {"prompt": name, "response": "a"})
    return folder


def saved(folder: Path, **splits: Any) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in splits or ["one"]}
    (datasets.DatasetDict(made) if splits else made["one"]).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("stale", ["cache-0123.arrow", "other.arrow", "rows.jsonl"])
def test_a_saved_data_set_is_what_its_manifest_lists(tmp_path: Path, stale: str) -> None:
    folder = saved(tmp_path / "saved")
    source = saved(tmp_path / "stale")
    (folder / stale).write_bytes(next(source.glob("*.arrow")).read_bytes())
    assert prompts(folder) == ["one"]


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"_data_files": [{}]}', '{"_data_files": [{"filename": "../x.arrow"}]}',
     '{"_data_files": [{"filename": "gone.arrow"}]}', "[" * 9999],
)  # fmt: skip
def test_a_manifest_that_lists_no_files_of_its_folder_is_refused(tmp_path: Path, manifest: str) -> None:
    folder = saved(tmp_path / "saved")
    (tmp_path / "x.arrow").write_bytes(next(folder.glob("*.arrow")).read_bytes())
    (folder / "state.json").write_text(manifest)
    with pytest.raises(DataError, match=r"state\.json: (lists|does not list)"):
        prompts(folder)


def test_caches_are_not_read_without_a_manifest_either(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    shutil.copy(next(folder.glob("*.arrow")), folder / "cache-0123456789.arrow")
    (folder / "state.json").unlink()
    assert len(read_rows([str(folder)]).rows) == 1
    assert read_rows([str(folder)]).funnel["duplicate"] == 0


def test_saved_splits_are_named_by_their_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved", train=1, test=1)
    with pytest.raises(
        DataError, match=r"holds the splits test, train\. Name what to read: .*saved/test, .*saved/train"
    ):
        prompts(folder)
    assert prompts(folder / "train") == prompts(f"{folder}:train") == ["train"]


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"),
        ("train.jsonl", "dev.jsonl"),
        ("data_train.jsonl", "data_validation.jsonl"),
        ("Train.jsonl", "heldout.jsonl"),
        ("train.jsonl", "rows.jsonl", "test.jsonl"),
        ("squad-train.jsonl", "squad-val1.jsonl"),
    ],
)
def test_a_folder_of_splits_is_refused_and_one_split_is_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = fill(tmp_path / "data", *names)
    with pytest.raises(
        DataError, match=r"holds the files of the splits .*train.* Name what to read: .*:train"
    ):
        prompts(folder)
    assert prompts(f"{folder}:train") == sorted(name for name in names if "train" in name.lower())
    with pytest.raises(DataError, match="and none 'tset'"):
        prompts(f"{folder}:tset")


@pytest.mark.parametrize(
    "names",
    [("a.jsonl", "b.jsonl"), ("train-0.jsonl", "train-1.jsonl"), ("test-0.jsonl",), ("rows.jsonl", "train.jsonl"),
     ("latest.jsonl", "contest.jsonl", "valuable.jsonl", "trainer.jsonl")],
)  # fmt: skip
def test_a_folder_of_one_split_is_read_whole(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert prompts(fill(tmp_path / "data", *names)) == sorted(names)


def test_a_folder_of_folders_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", "train/a.jsonl", "test/b.jsonl")
    with pytest.raises(DataError, match=r"Name what to read: .*data/test, .*data/train"):
        prompts(folder)
    assert prompts(f"{folder}:train") == ["train/a.jsonl"]


def test_a_recipe_names_a_split_from_its_own_folder(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("test", 3)):
        path = fill(tmp_path / "data", f"{split}-0.jsonl") / f"{split}-0.jsonl"
        write_lines(path, *({"id": i, "prompt": f"{split} {i}", "response": "a"} for i in range(count)))
    spec = DataSpec.model_validate({"train": ["data:train"], "heldout": ["data:test"]})
    data = read_data(spec, tmp_path, [])
    assert {row.prompt_text.split()[0] for row in data.trained_on} == {"train"}
    assert [row.prompt_text for row in data.heldout] == ["test 0", "test 1", "test 2"]
    assert len({row.id for row in data.everything}) == 11


def test_a_description_is_no_data(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", "rows.jsonl", "more.json")
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    assert prompts(folder) == ["more.json", "rows.jsonl"]
