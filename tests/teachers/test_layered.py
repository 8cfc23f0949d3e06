"""A teacher that is read block by block says what the whole model says, and goes on behind a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import places
from builders.cli import potstill
from builders.tiny import save_tiny, tiny_model, tiny_tokenizer
from potstill.data.batch import collate
from potstill.data.reader import reader_of
from potstill.data.template import Templater
from potstill.errors import MachineError, ModelError, RecipeError, SignalError
from potstill.models import loading
from potstill.models.projection import plain_logits
from potstill.runs.setup import open_recipe, set_up
from potstill.teachers import layered
from potstill.teachers._context import TeacherContext
from potstill.teachers.local import LocalTeacher
from potstill.types import Example, Reading

TESTS = Path(__file__).parent.parent


def rows(count: int = 6) -> list[Example]:
    """Rows of 5 to 25 tokens whose second half is scored."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(count):
        length = 5 + 4 * number
        ids = torch.randint(4, 128, (length,), generator=generator).tolist()
        made.append(Example(f"r{number}", tuple(ids), tuple(i > length // 2 for i in range(length))))
    return made


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def teacher(folder: Path, spill: Path, dtype: str = "float32", **options: Any) -> layered.LayeredTeacher:
    context = TeacherContext(
        folder.parent,
        torch.device("cpu"),
        lambda tokenizer, ends=(): reader_of(tokenizer, Templater(tokenizer, end_ids=ends)),
    )
    return layered.build(context, layered=str(folder), spill=str(spill), dtype=dtype, **options)  # type: ignore[arg-type]


def close_to(got: Any, model: Any, wanted: list[Example], tolerance: float = 2e-5) -> None:
    """Every example once, with the hidden states and logits of the whole model."""
    whole = LocalTeacher(model, vocabulary=128, fingerprint="whole")
    by_id = {example.id: said for example, said in got}
    assert by_id.keys() == {example.id for example in wanted}
    for example in wanted:
        alone = whole.signal(collate([example], pad_id=0).for_teacher)
        said = by_id[example.id]
        torch.testing.assert_close(said.hidden, alone.hidden, atol=tolerance, rtol=tolerance)
        logits = [plain_logits(one.head, one.hidden.float()) for one in (said, alone)]
        torch.testing.assert_close(*logits, atol=10 * tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gemma3", "sliding", "gpt2"])
def test_signals_are_those_of_the_whole_model(tmp_path, kind):
    model = tiny_model(kind=kind, tie=kind in ("gemma2", "gemma3", "gpt2"))
    folder = saved(tmp_path / "model", model)
    made = teacher(folder, tmp_path / "spill", batch_tokens=40)
    close_to(list(made.each(rows())), model, rows())
    batch = collate(rows()[:3], pad_id=0)
    torch.testing.assert_close(
        made.signal(batch).hidden,
        LocalTeacher(model, vocabulary=128, fingerprint="whole").signal(batch).hidden,
        atol=2e-5,
        rtol=2e-5,
    )
    made.close()
    assert list((tmp_path / "spill").iterdir()) == []


def test_shards_tied_heads_and_half_precision_are_read(tmp_path):
    tiny_model(tie=True, layers=3).save_pretrained(tmp_path / "model", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    model = loading.load_model(loading.find_source(str(tmp_path / "model")), dtype=torch.bfloat16)
    # Each row alone: in half precision the rows of a batch round each other.
    made = teacher(tmp_path / "model", tmp_path / "spill", "bfloat16", batch_tokens=1)
    got = list(made.each(rows()))
    assert got[0][1].hidden.dtype == torch.bfloat16
    close_to(got, model, rows(), tolerance=1e-6)


def test_the_teachers_own_reading_is_what_it_reads(tmp_path):
    model = tiny_model()
    folder = saved(tmp_path / "model", model)
    read = [
        Example(
            "a", (4, 5, 6), (False, True, True), reading=Reading((9, 4, 5, 6), (False, False, True, True))
        )
    ]
    close_to(list(teacher(folder, tmp_path / "spill").each(read)), model, read)


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 4, 7, 11])
def test_a_stopped_capture_goes_on_behind_the_last_batch_that_passed_a_block(tmp_path, after):
    folder = saved(tmp_path / "model", tiny_model(layers=3))
    whole = list(teacher(folder, tmp_path / "other", batch_tokens=40).each(rows()))
    made, passes = teacher(folder, tmp_path / "spill", batch_tokens=40), 0

    def count() -> None:
        nonlocal passes
        if passes == after:
            raise Stop
        passes += 1

    with pytest.raises(Stop):
        list(made.each(rows(), before_batch=count))
    again: list[tuple[int, int]] = []
    got = list(made.each(rows(), on_progress=lambda done, total: again.append((done, total))))
    total = again[-1][1]
    assert again == [(number, total) for number in range(after + 1, total + 1)]
    for (example, said), (other, wanted) in zip(got, whole, strict=True):
        assert example.id == other.id
        assert torch.equal(said.hidden, wanted.hidden)


def test_hidden_states_of_other_rows_or_weights_are_never_taken_for_these(tmp_path):
    spill, keys = tmp_path / "spill", set()
    for name, seed, count in (("one", 0, 4), ("one", 0, 5), ("two", 1, 4)):
        folder = tmp_path / name
        if not folder.exists():
            saved(folder, tiny_model(seed=seed))
        next(iter(teacher(folder, spill).each(rows(count))))  # taken in part, so that it stays
        keys |= {path.name for path in spill.iterdir()}
    assert len(keys) == 3


def test_a_full_disk_is_met_before_the_first_pass(tmp_path, monkeypatch):
    folder = saved(tmp_path / "model", tiny_model())
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(layered.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MachineError, match="hidden states of 1 batches need .* teacher.spill"):
        list(teacher(folder, tmp_path / "spill").each(rows()))


def test_weights_of_other_names_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "model", tiny_model())
    file = folder / "model.safetensors"
    state = {name.replace("q_proj", "query"): tensor for name, tensor in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ModelError, match="has no tensor model.layers.0.self_attn.q_proj.weight"):
        list(teacher(folder, tmp_path / "spill").each(rows()))


def test_a_single_batch_is_refused(tmp_path):
    folder = saved(tmp_path / "model", tiny_model())
    made = teacher(folder, tmp_path / "spill")
    with pytest.raises(SignalError, match="not prepared for row r0.* Capture its signals"):
        made.signal(collate(rows(2), pad_id=0))


def test_a_recipe_that_trains_beside_it_is_refused_and_one_that_finetunes_is_read(tmp_path):
    save_tiny(tmp_path / "small", seed=5, layers=1)
    changes = {"teacher": "{layered: teacher}", "student": "{model: small}"}
    place = places.write(tmp_path, **changes, stages="[{distill: {steps: 1}}]")
    with pytest.raises(RecipeError, match=r"stages.distill: asks the teacher batch by batch.*block by block"):
        set_up(open_recipe(place / "r.yaml"))
    places.recipe(place, **changes, stages="[{finetune: {steps: 1}}]")
    read = set_up(open_recipe(place / "r.yaml")).teacher
    places.recipe(place, **changes | {"teacher": "{model: teacher}"}, stages="[{finetune: {steps: 1}}]")
    assert read.fingerprint == set_up(open_recipe(place / "r.yaml")).teacher.fingerprint
    assert not read.batchwise


@pytest.mark.parametrize("stage", ["evaluate", "{distill: {strategy: on_policy, steps: 1}}"])
def test_a_stage_that_asks_behind_or_without_a_capture_is_refused(tmp_path, stage):
    save_tiny(tmp_path / "small", seed=5, layers=1)
    first = "{finetune: {steps: 1}}" if stage == "evaluate" else "capture"
    changes = {"teacher": "{layered: teacher}", "student": "{model: small}"}
    place = places.write(tmp_path, **changes, stages=f"[{first}, {stage}]")
    with pytest.raises(RecipeError, match="asks the teacher batch by batch"):
        set_up(open_recipe(place / "r.yaml"))


def test_a_deadline_that_could_cut_nothing_off_is_refused(tmp_path):
    save_tiny(tmp_path / "small", seed=5, layers=1)
    changes = {"teacher": "{layered: teacher}", "student": "{model: small}"}
    place = places.write(tmp_path, **changes, stages="[{capture: {deadline: 1h}}, {distill: {steps: 1}}]")
    with pytest.raises(RecipeError, match=r"stages.capture.deadline: has no effect"):
        set_up(open_recipe(place / "r.yaml"))


def test_a_run_captures_it_and_trains_and_measures_as_from_the_whole_model(tmp_path):
    """The losses are those of the run beside the whole teacher, and nothing is left on the disk.

    Each has a store of its own: in one the second would take the first one's cache, since the teacher is the same.
    """
    stages = "[capture, {distill: {steps: 2}}, {evaluate: {metrics: [likelihood]}}]"
    read = {}
    for name, teacher in (
        ("whole", "{model: teacher, dtype: float32}"),
        ("layered", "{layered: teacher, dtype: float32, spill: spill}"),
    ):
        save_tiny(tmp_path / name / "small", seed=5, layers=1)
        place = places.write(
            tmp_path / name, teacher=teacher, student="{model: small}", stages=stages, name=name
        )
        done = potstill("run", "r.yaml", cwd=place)
        assert done.returncode == 0, done.stderr
        summary = json.loads((place / "runs" / name / "summary.json").read_text())
        read[name] = [summary[role]["forward_kl"]["value"] for role in ("before", "after")]
    assert read["layered"] == pytest.approx(read["whole"], rel=1e-4)
    assert list((tmp_path / "layered" / "spill").iterdir()) == []


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from teachers.test_layered import rows, teacher
from potstill.models import loading
torch.set_num_threads(1)
folder, spill, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
made = teacher(folder, spill, batch_tokens=40)
import transformers.models.llama.modeling_llama, accelerate
def peak():  # getrusage keeps the peak of the process that started this one
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1])
before = peak()
if how == "whole":
    model = loading.load_model(made._stored.source, dtype=torch.float32)
    model(torch.tensor([[4, 5, 6]]))
else:
    print(len(list(made.each(rows()))), flush=True)
print(peak() - before)
"""


def process(tmp_path: Path, how: str, **settings: Any) -> Any:
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    code = SCRIPT.format(tests=str(TESTS))
    command = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "spill"), how]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **settings)


@pytest.mark.prove
def test_resident_memory_stays_far_below_the_whole_model(tmp_path):
    """16 blocks of 13 MB: block by block takes less than a third of what the whole model takes."""
    model = tiny_model(layers=16, hidden=512, intermediate_size=2048)
    saved(tmp_path / "model", model)
    size = sum(p.numel() * 4 for p in model.parameters()) / 1024
    used = {how: int(process(tmp_path, how).communicate()[0].split()[-1]) for how in ("whole", "layered")}
    assert used["whole"] > 0.9 * size
    assert used["layered"] < used["whole"] / 3


@pytest.mark.prove
def test_a_kill_at_any_instant_loses_no_batch_that_passed_a_block(tmp_path):
    model = tiny_model(layers=8)
    folder = saved(tmp_path / "model", model)
    killed = 0
    for milliseconds in (5, 20, 60):
        running = process(tmp_path, "layered")
        spilled = tmp_path / "spill"
        while running.poll() is None and not list(spilled.glob("*/*.safetensors")):
            pass
        try:
            running.wait(milliseconds / 1000)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            killed += 1
        running.communicate()
    assert killed
    close_to(list(teacher(folder, tmp_path / "spill", batch_tokens=40).each(rows())), model, rows())
