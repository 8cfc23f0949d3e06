"""Which GPU trains and which holds a teacher, on machines that are simulated by their number of GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builders.losses import token_loss
from builders.many import prepare
from builders.recipes import problems
from builders.steps import local_teacher, ragged_rows
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.devices import placement, ranks
from potstill.errors import ModelError, RecipeError
from potstill.models import loading
from potstill.recipe.devices import DevicesSpec
from potstill.runs import many, setup
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Head

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs; the list of those that were made current."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)

    def of(gpus: int, process: int = 0, processes: int = 1) -> list[int]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(ranks, "world", lambda: processes)
        monkeypatch.setenv("LOCAL_RANK", str(process))
        return current

    return of


@pytest.mark.parametrize(
    ("gpus", "apart", "expected"), [(0, (), 1), (1, (), 1), (4, (), 4), (4, (2, 3), 2), (4, (0,), 3)]
)
def test_a_machine_starts_one_process_a_gpu_without_a_teacher_of_its_own(machine, gpus, apart, expected):
    machine(gpus)
    assert placement.processes(None, apart) == expected


@pytest.mark.parametrize(
    ("process", "own", "teacher"), [(0, 0, 3), (1, 2, 1), (2, 0, 3)], ids=["first", "second", "one too many"]
)
def test_students_and_teachers_are_on_gpus_of_their_own(machine, process, own, teacher):
    """GPUs 3 and 1 of four hold teachers: 0 and 2 are left for students."""
    current = machine(4, process, processes=3)
    placement.take((3, 1))
    assert current == [own]
    assert placement.of_teacher((3, 1), torch.device("cuda", own)) == torch.device("cuda", teacher)


def test_two_processes_share_the_only_teachers_gpu(machine):
    machine(3, process=1, processes=2)
    assert placement.of_teacher((2,), torch.device("cuda", 1)) == torch.device("cuda", 2)


def test_a_process_alone_leaves_the_first_gpu_to_its_teacher(machine):
    current = machine(2)
    placement.take((0,))
    assert current == [1]


def test_attention_that_plans_for_every_shape_is_left_out(machine):
    machine(1)
    torch.backends.cuda.enable_cudnn_sdp(True)
    placement.take(())
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_weights_that_a_worker_or_a_verification_puts_on_a_gpu_leave_it_out_too(monkeypatch, tmp_path):
    """Neither opens a recipe; both load by `loading.load_model`. Here the model itself is never read."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    source = loading.Source("folder", str(tmp_path), None)
    for device, planned in (("cpu", True), ("cuda:0", False)):
        with pytest.raises(ModelError):
            loading.load_model(source, dtype=torch.float32, device=device)
        assert torch.backends.cuda.cudnn_sdp_enabled() is planned


def test_without_gpus_set_apart_a_teacher_is_beside_its_student(machine):
    current = machine(1)
    placement.take(())
    assert current == []
    assert placement.of_teacher((), CPU) == CPU


@pytest.mark.parametrize(
    ("gpus", "apart", "words"),
    [
        (0, (2,), "GPU 2, and this machine shows no GPUs"),
        (1, (0, 1), "GPU 1, and this machine shows 1 GPU."),
        (4, (1, 7), "GPU 7, and this machine shows 4 GPUs"),
        (2, (1, 0), "all 2 visible GPUs hold teachers"),
    ],
)
def test_gpus_that_a_machine_lacks_are_refused_with_their_number(machine, gpus, apart, words):
    machine(gpus)
    for refuses in (lambda: placement.processes(None, apart), lambda: placement.take(apart)):
        with pytest.raises(RecipeError, match=words) as refused:
            refuses()
        assert refused.value.path == "devices.teacher.on"


def test_more_processes_than_gpus_are_refused(machine):
    machine(4)
    with pytest.raises(
        RecipeError, match="3 processes need a GPU each, and this machine shows 4, of which 2"
    ):
        placement.processes(3, (2, 3))
    assert placement.processes(2, (2, 3)) == 2
    machine(0)
    assert placement.processes(3, ()) == 3


@pytest.mark.parametrize("override", ["{on: [2, 3]}", "{on: [2]}"])
def test_a_run_and_a_check_refuse_a_gpu_that_is_not_there(tmp_path, monkeypatch, machine, override):
    monkeypatch.chdir(prepare(tmp_path))
    machine(0)
    overrides = [f"devices.teacher={override}"]
    with pytest.raises(RecipeError, match="GPU 2, and this machine shows no GPUs"):
        many.launched("many.yaml", overrides, [])
    with pytest.raises(RecipeError, match="GPU 2, and this machine shows no GPUs"):
        setup.set_up(setup.open_recipe(Path("many.yaml"), overrides))


def test_the_recipe_says_where_teachers_are():
    assert DevicesSpec().apart == ()
    assert DevicesSpec.model_validate({"teacher": "sharded"}).apart == ()
    assert DevicesSpec.model_validate({"teacher": {"on": [2, 3]}}).apart == (2, 3)


@pytest.mark.parametrize(
    ("wrong", "path", "words"),
    [
        ({"on": []}, "on", "a list with something in it"),
        ({"on": [1, 1]}, "on", "names GPU 1 twice. Name each GPU once."),
        ({"on": [-1]}, "on.0", "at least 0, not -1"),
        ({"on": ["one"]}, "on.0", "a whole number"),
        ({"on": 2}, "on", "a list, not 2"),
        ({"over": [1]}, "over", "unknown key. Known here: on."),
        (
            "shard",
            "",
            "must be replicated, sharded or a mapping, not the text 'shard'. Did you mean sharded?",
        ),
    ],
)
def test_places_of_a_teacher_that_cannot_be_are_refused(wrong, path, words):
    wrongs = problems(devices={"teacher": wrong})
    assert words in wrongs[f"devices.teacher.{path}".rstrip(".")]


def test_a_teachers_signal_crosses_to_the_device_that_reads_it():
    """Its model stays; its head is copied once, and hidden states are all that crosses in a step."""
    model = tiny_model(seed=1)
    meta = torch.device("meta")
    teacher = LocalTeacher(model, vocabulary=128, fingerprint="t", read_on=meta)
    batch = collate(ragged_rows(3), pad_id=0)
    one, other = teacher.signal(batch), teacher.signal(batch)
    assert one.hidden.device == meta
    assert one.head.weight.device == meta
    assert one.head.weight is other.head.weight
    assert {parameter.device for parameter in model.parameters()} == {CPU}


def test_a_head_of_unknown_form_is_copied_to_another_device_and_kept_on_its_own():
    layer = torch.nn.Linear(4, 8)
    head = Head(None, 8, module=layer)
    assert head.to(CPU).module is layer
    assert head.to(torch.device("meta")).module.weight.device.type == "meta"
    assert layer.weight.device == CPU


def test_every_part_of_a_head_crosses():
    parts = torch.ones(8, 4), torch.ones(8), torch.ones(2, 4), torch.ones(8, 2)
    head = Head(parts[0], 8, bias=parts[1], softcap=3.0, lora=(parts[2], parts[3], 0.5))
    moved = head.to(torch.device("meta"))
    tensors = (moved.weight, moved.bias, *moved.lora[:2])
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 4
    assert (moved.softcap, moved.lora[2], moved.vocabulary) == (3.0, 0.5, 8)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_step_with_the_teacher_on_another_gpu_is_that_with_both_on_one():
    results = []
    for place in ("cuda:0", "cuda:1"):
        module = StudentModule(tiny_model(seed=0).to("cuda:0"), 128)
        teacher = LocalTeacher(
            tiny_model(seed=1).to(place), vocabulary=128, fingerprint="t", read_on=torch.device("cuda:0")
        )
        result = accumulate(module, teacher, [collate(ragged_rows(4), pad_id=0)], token_loss())
        results.append((result.loss, [parameter.grad for parameter in module.parameters()]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_a_teacher_on_the_students_device_gives_its_own_tensors():
    teacher = local_teacher()
    signal = teacher.signal(collate(ragged_rows(2), pad_id=0))
    assert signal.head.weight is teacher._model.lm_head.weight
