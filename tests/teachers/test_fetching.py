"""A capture behind a URL: the teacher that it holds, read from afar."""

from __future__ import annotations

from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch

from builders import captures, recipes
from builders.captures import captured, reading, rows
from potstill.cache.reader import Cache
from potstill.data.batch import collate
from potstill.errors import ArtifactError, CacheDamaged
from potstill.store.disk import write_sealed
from potstill.teachers import cached
from potstill.teachers._context import TeacherContext
from potstill.teachers._fetching import fetched

fsspec = pytest.importorskip("fsspec")
ROWS = rows(12)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return captured(tmp_path_factory.mktemp("artifact"), ROWS)


def put(artifact, url: str) -> str:
    """A copy of the capture at a URL."""
    system, root = fsspec.core.url_to_fs(url)
    for file in artifact.path.rglob("*"):
        if file.is_file():
            system.makedirs(f"{root}/{file.relative_to(artifact.path).parent}", exist_ok=True)
            system.pipe_file(f"{root}/{file.relative_to(artifact.path)}", file.read_bytes())
    return url


def teacher(folder, url: str):
    context = TeacherContext(folder, torch.device("cpu"), lambda tokenizer, ends: SimpleNamespace())
    return cached.build(context, cache=url)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_capture_at_a_url_says_what_the_folder_says(tmp_path, artifact, protocol):
    where = "memory://bucket/captured" if protocol == "memory" else f"file://{tmp_path}/captured"
    far, near = teacher(tmp_path, put(artifact, where)), reading(artifact, captures.teacher())
    for row in ROWS:
        batch = collate([row], pad_id=0)
        assert torch.equal(far.signal(batch).hidden, near.signal(batch).hidden)
    assert far.fingerprint == near.fingerprint
    assert where in far.about
    assert where in far.miss("r0").message
    assert not (far.folder / "signals").exists()
    assert far.heldout().place == where


def test_damage_at_a_url_is_named(tmp_path, artifact):
    url = put(artifact, "memory://bucket/damaged")
    system, root = fsspec.core.url_to_fs(url)
    (shard, *_) = sorted(artifact.path.glob("signals/shard-*.bin"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    system.pipe_file(f"{root}/signals/{shard.name}", bytes(raw))
    far = teacher(tmp_path, url)
    with pytest.raises(CacheDamaged, match=r"block \d+ of shard-"):
        far.signal(collate(ROWS, pad_id=0))
    system.pipe_file(f"{root}/probes.json", b"{}")
    fetched.cache_clear()
    with pytest.raises(ArtifactError, match=r"damaged/probes.json is not as it was written"):
        teacher(tmp_path, url)


def test_a_url_without_a_capture_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"memory://bucket/nothing is no folder of captured signals"):
        teacher(tmp_path, "memory://bucket/nothing")


def test_runs_behind_a_url_are_refused():
    assert "runs" in recipes.problems("capture", runs="s3://bucket/runs")


def test_no_file_outside_of_a_capture_is_written(tmp_path, artifact):
    """Whatever the manifest of a stranger names."""
    url = put(artifact, "memory://bucket/hostile")
    system, root = fsspec.core.url_to_fs(url)
    for name in ("../outside.json", str(tmp_path / "outside.json")):
        files = {name: {"bytes": 2, "sha256": sha256(b"{}").hexdigest()}}
        system.pipe_file(f"{root}/outside.json", b"{}")
        system.pipe_file(f"{root}/{name}", b"{}")
        write_sealed(tmp_path / "manifest.json", {"files": files})
        system.pipe_file(f"{root}/manifest.json", (tmp_path / "manifest.json").read_bytes())
        fetched.cache_clear()
        with pytest.raises(ArtifactError, match=r"names the file .* which is outside of it"):
            teacher(tmp_path, url)
        assert not (tmp_path / "outside.json").exists()


@pytest.mark.parametrize("url", ["nothing://bucket/captured", "absent://bucket/captured"])
def test_a_protocol_that_cannot_be_read_is_named(tmp_path, url):
    fsspec.register_implementation("absent", "no_such_package.System", clobber=True, errtxt="install it")
    with pytest.raises(ArtifactError, match=f"cannot read {url}: ") as caught:
        teacher(tmp_path, url)
    assert "pip install" in caught.value.fix
    with pytest.raises(ArtifactError, match=f"cannot read {url}/signals: "):
        Cache.open(f"{url}/signals")


def test_a_failing_network_is_named_by_the_url(tmp_path, artifact, monkeypatch):
    url = put(artifact, "memory://bucket/failing")
    fetched.cache_clear()
    far = teacher(tmp_path, url)
    system, _ = fsspec.core.url_to_fs(url)

    def fail(*_, **__):
        raise PermissionError("the key has expired")

    monkeypatch.setattr(type(system), "cat_file", fail)
    with pytest.raises(
        ArtifactError, match=r"bucket/failing.* cannot be read: PermissionError: the key has expired"
    ):
        far.signal(collate(ROWS, pad_id=0))
    fetched.cache_clear()
    with pytest.raises(ArtifactError, match=r"bucket/failing cannot be read: PermissionError"):
        teacher(tmp_path, url)
