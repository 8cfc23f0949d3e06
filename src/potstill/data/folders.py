"""The data files of a folder: those of a saved data set, or those of one split."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

from potstill.errors import DataError

# Splits by how files are named: train-00000-of-00002.parquet, test.jsonl, squad-validation.arrow.
_SPLIT = re.compile(
    r"(?:^|[-_.])(?P<train>train(?:ing)?)(?:$|[-_.\d])|(?:^|[-_.])(?P<other>test(?:ing)?|valid(?:ation)?|val|dev|"
    r"eval(?:uation)?|held-?out)(?:$|[-_.\d])"
)
_MANIFEST, _SPLITS = "state.json", "dataset_dict.json"
_DESCRIPTIONS = (_MANIFEST, _SPLITS, "dataset_info.json", "dataset_infos.json")


def kind(path: Path) -> str:
    """The suffix of a file, also of one that is compressed."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def reads(suffixes: Collection[str]) -> str:
    """Say which files are read."""
    return f"Potstill reads {', '.join(suffixes)}."


def files_of(folder: Path, name: str, suffixes: Collection[str], split: str = "") -> list[Path]:
    """List the data files of a folder, or of one split in it. `name` is how the recipe calls it.

    Raises:
        DataError: there is none, or the folder holds several splits; names what to write instead.
    """
    if (folder / _SPLITS).is_file():
        if split and (folder / split).is_dir():
            return files_of(folder / split, name, suffixes)
        raise _several(name, "", folder, [p.name for p in sorted(folder.iterdir()) if p.is_dir()])
    if (folder / _MANIFEST).is_file():
        return _saved(folder)
    files = sorted(p for p in folder.iterdir() if kind(p) in suffixes and not _unwanted(p))
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path), []).append(path)
    if split:
        if split in by_split:
            return by_split[split]
        if (folder / split).is_dir():
            return files_of(folder / split, name, suffixes)
    elif len(by_split) == 1 or set(by_split) == {"", "train"}:
        return files
    if files:
        raise _several(name, "the files of ", folder, list(by_split), split)
    inside = sorted(
        p.name
        for p in folder.iterdir()
        if p.is_dir() and not p.name.startswith(".") and any(kind(q) in suffixes for q in p.iterdir())
    )
    if inside:
        raise _several(name, "", folder, inside)
    raise DataError("the folder holds no data file.", path=name, fix=reads(suffixes))


def _saved(folder: Path) -> list[Path]:
    """The files that a saved data set lists: others beside them are caches."""
    try:
        listed = [entry["filename"] for entry in json.loads((folder / _MANIFEST).read_bytes())["_data_files"]]
        paths = [folder / str(entry) for entry in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            "does not list the files of a saved data set.", path=str(folder / _MANIFEST), fix="Save it again."
        ) from error
    for entry, path in zip(listed, paths, strict=True):
        if Path(str(entry)).name != entry or not path.is_file():
            raise DataError(
                f"lists {entry!r}, which is no file of this folder.",
                path=str(folder / _MANIFEST),
                fix="Copy the whole folder again.",
            )
    return paths


def _unwanted(path: Path) -> bool:
    return path.name.startswith((".", "cache-")) or path.name in _DESCRIPTIONS or not path.is_file()


def _split_of(path: Path) -> str:
    """The split that a file's name says, "" for none."""
    found = _SPLIT.search(path.name.removesuffix(".gz").removesuffix(kind(path)).lower())
    if found is None:
        return ""
    return "train" if found["train"] else str(found["other"])


def _several(name: str, what: str, folder: Path, splits: list[str], split: str = "") -> DataError:
    named = [one for one in splits if one]
    unnamed = " and files of no split" if "" in splits else ""
    bare = name.removesuffix(f":{split}") if split else name
    ways = ", ".join(f"{bare}:{one}" if what else str(Path(bare) / one) for one in named) or "its files"
    return DataError(
        f"holds {what}the splits {', '.join(named) or 'none'}{unnamed}"
        + (f", and none {split!r}." if split else "."),
        path=name,
        fix=f"Name what to read: {ways}" + (", or the files one by one." if unnamed else "."),
    )
