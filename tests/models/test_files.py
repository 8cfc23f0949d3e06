"""What is loaded is exactly what is checked and hashed."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.tiny import save_tiny, tiny_model
from potstill.errors import ModelError
from potstill.models import loading
from potstill.models.files import INDEX, SINGLE

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 269060552\n"
ANNEX = "/annex/objects/MD5E-s269060552--00000000000000000000000000000000.safetensors\n"


def source(folder: Path) -> loading.Source:
    return loading.find_source(str(folder))


def load(folder: Path) -> None:
    loading.load(source(folder), dtype=torch.float32)


def sharded(folder: Path, place: str = "{}", suffix: str = ".safetensors") -> Path:
    """A model in two shards, whose index names them as `place` says."""
    save_tiny(folder)
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(weights)
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        name = place.format(f"part-{number}{suffix}")
        (folder / name).parent.mkdir(exist_ok=True)
        if suffix == ".safetensors":
            save_file({key: weights[key] for key in part}, folder / name, metadata={"format": "pt"})
        else:
            torch.save({key: weights[key] for key in part}, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def test_shards_beside_their_index_are_loaded_and_hashed(tmp_path):
    folder = sharded(tmp_path / "m")
    loaded = loading.load(source(folder), dtype=torch.float32).model
    for name, tensor in tiny_model().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    before = loading.fingerprint(source(folder))
    shard = folder / "part-1.safetensors"
    save_file({k: v + 1 for k, v in load_file(shard).items()}, shard, metadata={"format": "pt"})
    assert loading.fingerprint(source(folder)) != before


@pytest.mark.parametrize("place", ["sub/{}", "../{}", "./{}"])
def test_shards_that_are_not_plainly_in_the_folder_are_refused(tmp_path, place):
    folder = sharded(tmp_path / "m", place)
    for step in (load, lambda f: loading.fingerprint(source(f)), lambda f: loading.load_config(source(f))):
        with pytest.raises(ModelError, match=r"names '.*', which is not a \*\.safetensors file beside it"):
            step(folder)


def test_an_index_that_names_a_pickle_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"names 'part-0\.bin', which is not a \*\.safetensors file"):
        load(sharded(tmp_path / "m", suffix=".bin"))


def test_an_empty_safetensors_file_does_not_let_a_pickle_pass(tmp_path):
    folder = save_tiny(tmp_path / "m")
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()
    (folder / "x.safetensors").touch()
    for step in (load, lambda f: loading.fingerprint(source(f))):
        with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\)"):
            step(folder)


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 7}}', '{"metadata": {}}', "[" * 100_000]
)
def test_an_index_that_cannot_be_read_is_named(tmp_path, index):
    folder = sharded(tmp_path / "m")
    (folder / INDEX).write_text(index)
    with pytest.raises(ModelError, match=r"cannot .*index\.json: .*Download it again"):
        loading.fingerprint(source(folder))


def test_a_missing_shard_is_named(tmp_path):
    folder = sharded(tmp_path / "m")
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"part-1\.safetensors is missing; .*index\.json names it"):
        loading.fingerprint(source(folder))


def test_a_config_that_reads_its_weights_from_elsewhere_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "m")
    (folder / SINGLE).rename(folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    with pytest.raises(ModelError, match=r"reads its weights from another file \(other\.safetensors\)"):
        load(folder)


@pytest.mark.parametrize("text", [LFS, ANNEX])
@pytest.mark.parametrize("name", [SINGLE, "config.json", "tokenizer.json", "part-0.safetensors"])
def test_a_pointer_text_is_named_as_such_before_weights_are_loaded(tmp_path, name, text):
    folder = (sharded if name.startswith("part") else save_tiny)(tmp_path / "m")
    (folder / name).write_text(text)
    for step in (loading.load_config, loading.load_tokenizer, loading.fingerprint):
        with pytest.raises(ModelError, match=rf"{name} is a pointer of .*[Ff]etch the file"):
            step(source(folder))


def test_a_gguf_file_that_is_a_pointer_text_is_named_as_such(tmp_path):
    (tmp_path / "x.gguf").write_text(LFS)
    for step in (loading.load_config, loading.load_tokenizer, loading.fingerprint):
        with pytest.raises(ModelError, match=r"x\.gguf is a pointer of Git LFS"):
            step(source(tmp_path / "x.gguf"))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_that_is_cut_off_is_named_before_weights_are_loaded(tmp_path, keep):
    folder = save_tiny(tmp_path / "m")
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"cannot read .*{SINGLE}: .*Download it again"):
        loading.fingerprint(source(folder))


@pytest.mark.parametrize("name", ["notes.txt", "tokenizer.json", "chat_template.jinja", "vocab.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_a_pipe_or_device_in_a_model_folder_is_refused(tmp_path, name, kind, monkeypatch):
    """Reading one would wait for ever, or never end."""
    folder = save_tiny(tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    monkeypatch.chdir(folder)  # a socket's path must be short
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    for step in (loading.load_config, loading.load_tokenizer, loading.fingerprint):
        with pytest.raises(ModelError, match=rf"{name} is a pipe, socket or device, not a file"):
            step(source(folder))


def test_a_folder_of_links_to_files_loads_as_in_the_hubs_cache(tmp_path):
    blobs, folder = save_tiny(tmp_path / "blobs"), tmp_path / "m"
    folder.mkdir()
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "gone.txt").symlink_to("nowhere")
    load(folder)


def test_a_locked_file_of_git_annex_is_named_as_such(tmp_path):
    folder = save_tiny(tmp_path / "m")
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(".git/annex/objects/aa/bb/MD5E-s1--0/MD5E-s1--0.safetensors")
    with pytest.raises(ModelError, match=rf"{SINGLE} is a pointer of git-annex"):
        loading.load_config(source(folder))
