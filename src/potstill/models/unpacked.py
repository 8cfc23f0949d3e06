"""A GGUF file as a folder of safetensors, unpacked once."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path

import torch

from potstill.models import gguf
from potstill.models.reading import arguments, reading
from potstill.models.source import Source
from potstill.models.weights import read_weights, save
from potstill.store import unpacking
from potstill.store.disk import file_hash, move_into_place, write_json

log = logging.getLogger("potstill")

UNPACKED = 2  # raised when what is kept of a GGUF file changes its meaning


def unpacked(source: Source) -> Source:
    """Unpack a GGUF file once into a safetensors folder, and return the folder; else the source itself."""
    import transformers

    if source.kind != "gguf":
        return source
    digest = file_hash(source.path)
    target = unpacking.gguf_folder() / f"{digest[:32]}-{transformers.__version__}-{UNPACKED}"
    marker = target / "complete.json"
    if not marker.is_file():
        log.info("unpacking %s once", source.path.name)
        with unpacking.begun() as temporary:
            try:
                _unpack(source, temporary)
                write_json(temporary / marker.name, {"sha256": digest, "file": source.path.name})
                (temporary / unpacking.LOCK).unlink()
                move_into_place(temporary, target)
            except OSError:
                # Another process may have been faster; its copy is as good.
                if not marker.is_file():
                    raise
    return Source("folder", str(target))


def _unpack(source: Source, folder: Path) -> None:
    from transformers import AutoTokenizer, GgufConfig

    # Its bar writes carriage returns to standard error and has no switch.
    with contextlib.redirect_stderr(io.StringIO()):
        model = read_weights(source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
        with reading(source):
            gguf.require_all_read(source.path, model)
            tokenizer = AutoTokenizer.from_pretrained(**arguments(source))
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    save(model, tokenizer, folder)
