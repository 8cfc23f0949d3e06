"""Named tensors in a folder of safetensors: whole ones in one file, sharded ones as every process holds them.

Either is read back by any number of processes, each taking the part that it needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.tensor import DTensor

from potstill.devices import ranks
from potstill.store import disk

FILE = "tensors.safetensors"


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a folder that exists. Every process calls it; the first one writes what is whole."""
    if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        with _silent():
            writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
            dcp.save(dict(tensors), storage_writer=writer)
    elif ranks.first():
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / FILE
        )


def read(folder: Path, into: Mapping[str, Tensor], *, alone: bool = False) -> None:
    """Copy stored values into tensors of the same names and shapes, whole or sharded.

    Every process calls it, or this one `alone` with whole tensors.
    """
    with _silent():
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(
            {name: tensor.detach() for name, tensor in into.items()},
            storage_reader=reader,
            no_dist=alone or ranks.world() == 1,
        )


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The whole shape of every stored tensor."""
    stored = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: tuple(tensor.size)
        for name, tensor in stored.items()
        if not isinstance(tensor, BytesStorageMetadata)
    }


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file, each computed by one process."""
    files = sorted(folder.glob("*.safetensors"))
    parts = ranks.gather({file.name: disk.hash_once(file) for file in ranks.mine(files)})
    return {name: content for part in parts for name, content in part.items()}


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on its own formats
        yield
