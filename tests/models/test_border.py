"""What a library raises becomes one sentence: the file, the reason, the way out."""

from __future__ import annotations

import errno
import json

import pytest
import torch

from builders.tiny import save_tiny, tiny_model, tiny_tokenizer
from potstill.errors import ModelError
from potstill.models import loading
from potstill.models.border import border
from potstill.runs.status import machine_error

FP32 = torch.float32


class PanicException(BaseException):
    """What a library in Rust raises when it panics."""


FOREIGN = [
    Exception("data did not match"), OSError("gone"), ValueError(), KeyError("model_type"), RecursionError("deep"),
    SystemError("bad call"), ImportError("install it"), AssertionError(), NotImplementedError(), StopIteration(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), PanicException("index out of range"),
]  # fmt: skip


@pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)
def test_any_exception_becomes_a_model_error(error):
    words = r"cannot read x: .+ Look again\."
    with pytest.raises(ModelError, match=words) as caught, border("cannot read x", "Look again."):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EFBIG, errno.EDQUOT])
def test_a_device_that_fails_under_a_model_is_the_machines_fault(number):
    """Exit code 3, as for every other file; the words of a library's own OSError have no number."""
    with pytest.raises(OSError) as caught, border("cannot read x", "Look again."):
        raise OSError(number, "failed", "model.safetensors")
    reason = machine_error(caught.value)
    assert reason is not None
    assert reason.exit_code == 3
    assert "model.safetensors" in reason.message


@pytest.mark.parametrize(
    "error",
    [MemoryError(), KeyboardInterrupt(), SystemExit(1), torch.OutOfMemoryError("CUDA out of memory."),
     RuntimeError("DefaultCPUAllocator: can't allocate memory"), OSError(28, "No space left on device"),
     ModelError("is ours")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_interrupts_the_machines_limits_and_errors_of_our_own_pass(error):
    with pytest.raises(type(error)) as caught, border("cannot read x", "Look again."):
        raise error
    assert caught.value is error


BROKEN = {
    "config.json": [
        "[]", "{}", '{"model_type": "strange"}', "[" * 100_000, '{"model_type": 7}', "\udcff", "",
    ],
    "tokenizer.json": ["[]", "{}", "[" * 100_000, "", '{"model": {"type": "Strange", "vocab": {}}}', '{"model": 7}'],
    "tokenizer_config.json": ["[1]", '{"tokenizer_class": 5}', "[" * 100_000, "{"],
    "generation_config.json": ["[]", "[" * 100_000],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_a_file_that_no_library_understands_is_a_model_error(tmp_path, name, text):
    folder = save_tiny(tmp_path / "m")
    (folder / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ModelError, match=r"(cannot load the (model|tokenizer) .*/m: .|has the model type)"):
        loading.load(loading.find_source(str(folder)), dtype=FP32)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"dtype": "strange"}, {"hidden_act": "strange"},
     {"rope_scaling": {"type": "strange"}}, {"quantization_config": "x"}, {"quantization_config": {"bits": 4}}],
    ids=str,
)  # fmt: skip
def test_a_config_value_that_no_library_understands_is_a_model_error(tmp_path, changes):
    folder = save_tiny(tmp_path / "m")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ModelError, match=r"cannot load the (model|tokenizer)|an unnamed method"):
        loading.load(loading.find_source(str(folder)), dtype=FP32)


def test_errors_of_the_disk_pass_while_a_model_is_saved(tmp_path):
    """They are the machine's, not the model's."""
    (tmp_path / "taken").touch()
    with pytest.raises(NotADirectoryError):
        loading.save(tiny_model(), tiny_tokenizer(), tmp_path / "taken")


def test_what_cannot_be_saved_is_a_model_error(tmp_path):
    model = tiny_model()
    model.config.temperature = 0.9  # of the generation config; transformers refuses to write it here
    with pytest.raises(ModelError, match=r"cannot save the model to .*m: ."):
        loading.save(model, tiny_tokenizer(), tmp_path / "m")
