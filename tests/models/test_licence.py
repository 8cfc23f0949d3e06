"""The licence of a model, as far as its own files state it."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.tiny import save_tiny_gguf
from potstill.models.licence import licence
from potstill.models.source import Source

CARD = "---\nlanguage: en\nlicense: {}\ntags:\n- a\n---\n# A model\nlicense: none of this\n"
APACHE = "\n                                 Apache License\n                           Version 2.0, January 2004\n"


@pytest.mark.parametrize(("files", "stated"), [
    ({}, ""),
    ({"README.md": CARD.format("apache-2.0")}, "apache-2.0"),
    ({"README.md": CARD.format('"mit"')}, "mit"),
    ({"README.md": CARD.format("other\nlicense_name: made-up-1.0")}, "made-up-1.0"),
    ({"README.md": "# A model\nlicense: mit\n"}, ""),
    ({"README.md": "# A model\n", "LICENSE": APACHE}, "Apache License, Version 2.0, January 2004"),
    ({"LICENCE": "MIT License\n\nCopyright (c) somebody\n"}, "MIT License"),
    ({"README.md": CARD.format("mit"), "LICENSE": APACHE}, "mit"),
    ({"LICENSE": "\n\n"}, ""),
    ({"LICENSE": "\u00ff" * 30_000}, "\u00ff" * 100),
])  # fmt: skip
def test_a_folder_says_its_licence(tmp_path: Path, files: dict[str, str], stated: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert licence(Source("folder", str(tmp_path))) == stated


def test_a_folder_in_the_place_of_a_licence_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").mkdir()
    assert licence(Source("folder", str(tmp_path))) == ""


def test_a_hub_model_without_a_cached_card_is_not_looked_up() -> None:
    assert licence(Source("hub", "nobody/nothing")) == ""


def test_a_gguf_file_without_the_field_says_nothing(tmp_path: Path) -> None:
    assert licence(Source("gguf", str(save_tiny_gguf(tmp_path / "a.gguf")))) == ""


def test_a_gguf_file_says_its_licence(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(tmp_path / "a.gguf"), "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert licence(Source("gguf", str(tmp_path / "a.gguf"))) == "apache-2.0"


def test_a_damaged_gguf_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 40)
    assert licence(Source("gguf", str(tmp_path / "a.gguf"))) == ""
