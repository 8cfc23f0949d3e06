"""The product in several processes gives what it gives in one."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
from safetensors.torch import load_file

from builders import places
from builders.many import Left, finished, prepare, start, stopped, trained
from builders.outside import tracker
from builders.tiny import save_tiny

WAYS = {
    "2 replicas": ("devices.processes=2",),
    "2 parts of student and teacher": (
        "devices.processes=2", "devices.sharding=fsdp", "devices.teacher=sharded",
    ),
    "4 replicas": ("devices.processes=4", "devices.sharding=ddp"),
    "4 parts": ("devices.processes=4", "devices.sharding=fsdp"),
}  # fmt: skip
LONG = [pytest.param(way, marks=pytest.mark.prove) for way in ("4 replicas", "4 parts")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Left:
    return finished(prepare(tmp_path_factory.mktemp("alone")), "many.yaml")


def assert_same(some: Left, alone: Left) -> None:
    """The same answers; losses, gradient norms and figures to rounding; the same weights to rounding."""
    assert some.answers == alone.answers
    assert [event["tokens"] for event in some.steps] == [event["tokens"] for event in alone.steps]
    for key in ("loss", "grad_norm", "divergence"):
        got, wanted = ([event[key] for event in left.steps] for left in (some, alone))
        assert got == pytest.approx(wanted, rel=1e-4 if key == "grad_norm" else 1e-5), key
    assert some.validations == pytest.approx(alone.validations, rel=1e-5)
    assert some.figures == pytest.approx(alone.figures, rel=1e-5)
    one, other = (load_file(left.path / "student/model.safetensors") for left in (some, alone))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor - other[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize("way", ["2 replicas", "2 parts of student and teacher", *LONG])
def test_many_processes_give_what_one_gives(alone, tmp_path, way):
    """Answers, every step's loss and gradient norm, validations, figures; some steps leave a process no row."""
    some = finished(prepare(tmp_path), "many.yaml", *WAYS[way])
    assert_same(some, alone)


@pytest.mark.prove
@pytest.mark.parametrize("way", ["2 replicas", "2 parts of student and teacher"])
def test_a_frozen_head_is_compared_by_vectors_in_many_processes_as_in_one(tmp_path, way):
    """What a capture keeps of a frozen head's teacher serves replicas and parts; the head stays as it was."""
    text = "{max_kl_nats: 0.01, signal: kl_vector}"
    losses = []
    for name, options in (("one", ()), ("some", tuple(o for o in WAYS[way] if "teacher" not in o))):
        place = prepare(tmp_path / name)
        recipe = place / "many.yaml"
        recipe.write_text(
            recipe.read_text().replace(
                "  - distill: {", f"  - capture: {text}\n  - distill: {{freeze_head: true, "
            )
        )
        losses.append([event["loss"] for event in finished(place, "many.yaml", *options).steps])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_one_process_of_several_talks_to_trackers(tmp_path):
    place = prepare(tmp_path)
    shutil.copy(tracker.__file__, place / "mine.py")
    mine = "trackers=[{'mine:lines': {file: tracked.jsonl}}]"
    some = finished(place, "many.yaml", "devices.processes=2", mine)
    lines = [json.loads(line) for line in (tmp_path / "tracked.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines if line["kind"] != "log"] == ["start", "close"]
    losses = [line["values"].get("distill/loss") for line in lines if line["kind"] == "log"]
    assert [loss for loss in losses if loss is not None] == [event["loss"] for event in some.steps]


def test_a_run_in_parts_goes_on_in_one_process(alone, tmp_path):
    """Stopped in the middle of its training, with a checkpoint in two parts, and gone on with alone."""
    place = prepare(tmp_path)
    code, said = stopped(place, "many.yaml", *WAYS["2 parts of student and teacher"])
    assert code == 128 + signal.SIGTERM, said
    assert "Continue with: potstill run runs/many" in said
    (newest, *_) = sorted(place.glob("runs/.store/.building-train-*/.checkpoints/step-*"), reverse=True)
    names = {}
    for part in ("weights", "optimizer"):
        files = list((newest / part).glob("*.safetensors"))
        assert len(files) == 2
        names[part] = {name for file in files for name in load_file(file)}
    # A step count and two averages of every parameter, and the random state.
    assert len(names["optimizer"]) == 3 * len(names["weights"]) + 1
    assert_same(finished(place, "runs/many", "devices.processes=1", "devices.sharding=auto"), alone)


@pytest.mark.prove
@pytest.mark.parametrize("before", ["2 replicas", "4 parts"])
@pytest.mark.parametrize("after", ["2 parts of student and teacher", "4 replicas"])
def test_a_run_goes_on_in_another_number_of_processes(alone, tmp_path, before, after):
    place = prepare(tmp_path)
    code, said = stopped(place, "many.yaml", *WAYS[before], number=signal.SIGINT)
    assert code == 128 + signal.SIGINT, said
    assert_same(finished(place, "runs/many", *WAYS[after]), alone)


# The student writes beside its teacher, keeps and reads again; a process may have no rollout of a step.
ON_POLICY = (
    "stages=[{distill: {tokens_per_step: 40, micro_batch_tokens: 8, steps: 8, learning_rate: 0.001, "
    "validate_every: 4, checkpoint_every: 2, precision: float32, divergence: reverse_kl, strategy: "
    "{on_policy: {max_new_tokens: 8, on_policy_fraction: 0.8, teacher_share: 0.2, replay: 6, refresh: 0.4}}}}]",
)


def assert_same_training(some: Left, alone: Left) -> None:
    """Losses, gradient norms and what is said of rollouts to rounding; the same weights to rounding."""
    for key in ("loss", "grad_norm", "tokens", "on_policy", "rollouts", "rollout_age"):
        got, wanted = ([event.get(key, 0.0) for event in left.steps] for left in (some, alone))
        assert got == pytest.approx(wanted, rel=1e-4 if key == "grad_norm" else 1e-5), key
    assert some.validations == pytest.approx(alone.validations, rel=1e-5)
    one, other = (load_file(left.path / "student/model.safetensors") for left in (some, alone))
    for name, tensor in one.items():
        assert (tensor - other[name]).abs().max() < 1e-5, name


@pytest.fixture(scope="module")
def writing(tmp_path_factory) -> Left:
    """One process in which the student writes."""
    left = finished(prepare(tmp_path_factory.mktemp("writing"), answered=True), "many.yaml", *ON_POLICY)
    kinds = {(event["on_policy"], "rollout_age" in event) for event in left.steps}
    assert kinds == {(0.0, False), (1.0, False), (1.0, True)}, "the steps are of all kinds"
    return left


@pytest.mark.parametrize("way", ["2 replicas", "2 parts of student and teacher", *LONG])
def test_a_student_that_writes_in_many_processes_learns_what_it_learns_in_one(writing, tmp_path, way):
    assert_same_training(
        finished(prepare(tmp_path, answered=True), "many.yaml", *ON_POLICY, *WAYS[way]), writing
    )


# Sums that cross processes: the advantages' mean and deviation, and the step's pairs and their number.
ACROSS = {
    "advantages": "divergence: reverse_kl, policy_gradient: {whiten: true, clip: 0.2}, "
    "strategy: {on_policy: {max_new_tokens: 8, collect: 2, inner_epochs: 2}}",
    "pairs": "preference: {beta: 0.5}, strategy: {on_policy: {max_new_tokens: 8, keep_rows: true, samples: 2}}",
}
FIGURES = {
    "advantages": ("policy_gradient", "sampled_reverse_kl", "clipped"),
    "pairs": ("preference", "preferred"),
}


@pytest.mark.prove
@pytest.mark.parametrize("of", ACROSS)
def test_sums_over_a_step_are_those_of_all_processes(tmp_path, of):
    """Terms that read the whole step: whitened advantages and preference pairs, in one process and in two."""
    stage = (
        "stages=[{distill: {tokens_per_step: 40, micro_batch_tokens: 8, steps: 8, learning_rate: 0.001, "
        f"validate_every: 4, precision: float32, guards: null, {ACROSS[of]}}}}}]"
    )
    alone, some = (
        finished(prepare(tmp_path / name, answered=True), "many.yaml", stage, *options)
        for name, options in (("alone", ()), ("some", WAYS["2 replicas"]))
    )
    for key in FIGURES[of]:
        got, wanted = ([event[key] for event in left.steps] for left in (some, alone))
        # Whitened advantages add up to nothing, so their sum is all rounding where no ratio has moved.
        assert got == pytest.approx(wanted, rel=1e-5, abs=1e-6), key
    assert len({event[FIGURES[of][0]] for event in alone.steps}) > 4, "the steps differ"
    assert_same_training(some, alone)


@pytest.mark.prove
def test_rollouts_of_two_processes_go_on_in_one(writing, tmp_path):
    """Stopped with kept rollouts in both, and gone on with alone."""
    place = prepare(tmp_path, answered=True)
    code, said = stopped(place, "many.yaml", *ON_POLICY, *WAYS["2 replicas"])
    assert code == 128 + signal.SIGTERM, said
    assert_same_training(finished(place, "runs/many", "devices.processes=1"), writing)


# Its average, which reads more than it does, and the frozen student of `reference` are in parts as it is.
SELF = (
    "stages=[{distill: {tokens_per_step: 40, micro_batch_tokens: 8, steps: 8, learning_rate: 0.001, "
    "validate_every: 4, checkpoint_every: 2, precision: float32, divergence: reverse_kl, "
    "strategy: {on_policy: {max_new_tokens: 6, inner_epochs: 2}}, self_teacher: {rate: 0.2}, "
    "privileged: {template: '{prompt} w90 {shown}'}, reference: {weight: 0.1}}}]",
)


def test_a_student_that_teaches_itself_in_parts_goes_on_alone_as_if_it_had_been(tmp_path):
    """Stopped with a checkpoint in two parts, its teacher's too, and gone on with in one process."""
    alone = finished(prepare(tmp_path / "alone", answered=True), "many.yaml", *SELF)
    place = prepare(tmp_path / "parts", answered=True)
    code, said = stopped(place, "many.yaml", *SELF, *WAYS["2 parts of student and teacher"])
    assert code == 128 + signal.SIGTERM, said
    (newest, *_) = sorted(place.glob("runs/.store/.building-train-*/.checkpoints/step-*"), reverse=True)
    student, teacher = (
        [load_file(file) for file in sorted((newest / part).glob("*.safetensors"))]
        for part in ("weights", "beside")
    )
    assert len(student) == len(teacher) == 2
    sizes = [sum(tensor.numel() for tensor in part.values() if tensor.ndim > 1) for part in teacher]
    assert min(sizes) > 0
    some = finished(place, "runs/many", "devices.processes=1", "devices.sharding=auto")
    assert_same_training(some, alone)
    distances = ([event["reference_divergence"] for event in left.steps] for left in (some, alone))
    assert next(distances) == pytest.approx(next(distances), rel=1e-4, abs=1e-7)


STRATEGY = """\
from potstill.data.batch import collate
from potstill.devices import ranks
from potstill.types import Strategy


class Breaks(Strategy):
    steps = 0

    def batches(self, sampler, rows):
        self.steps += 1
        if self.steps > 3 and ranks.rank() == 1:
            raise ValueError("only here")
        yield from (collate(micro, pad_id=sampler.pad_id) for micro in rows)


def build():
    return Breaks()
"""


def test_the_reason_of_the_process_that_failed_is_what_a_run_ends_with(tmp_path):
    """Another process then only sees a closed connection, and says nothing of it."""
    place = prepare(tmp_path)
    (place / "breaks.py").write_text(STRATEGY)
    process = start(place, "run", "many.yaml", "devices.processes=2", "distill.strategy=breaks:build")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "breaks:build failed: ValueError: only here" in errors[0]
    status = start(place, "status", "runs/many").communicate(timeout=60)[0]
    assert "failed" in status
    assert "only here" in status


@pytest.mark.prove
def test_a_process_that_is_killed_ends_the_run_within_a_minute(tmp_path):
    import psutil

    place = prepare(tmp_path)
    process = start(place, "run", "many.yaml", "devices.processes=2", "distill.steps=2000")
    while not trained(place):
        assert process.poll() is None
    psutil.Process(process.pid).children()[-1].kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "ended by SIGKILL, without a word" in said


def test_none_is_refused_for_several_processes(tmp_path):
    place = prepare(tmp_path)
    process = start(place, "run", "many.yaml", "devices.processes=2", "devices.sharding=none")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "devices.sharding: none" in said


@pytest.mark.prove
def test_a_capture_of_one_process_serves_a_training_of_two(tmp_path):
    """A teacher that is read block by block is captured in one process, and the recipe goes on as it is."""
    place = prepare(tmp_path, answered=True)
    save_tiny(place / "student", layers=1, seed=3)
    places.recipe(
        place, teacher="{layered: teacher}", student="{model: student}", devices="{processes: 2}",
        stages="[capture, {distill: {steps: 2}}]",
    )  # fmt: skip
    output, code = stopped_output(start(place, "run", "r.yaml"))
    assert code != 0
    assert "devices.processes=1 --until capture" in output
    for further in (("devices.processes=1", "--until", "capture"), ()):
        output, code = stopped_output(start(place, "run", "r.yaml", *further))
        assert code == 0, output


def stopped_output(process) -> tuple[str, int]:
    out, err = process.communicate(timeout=300)
    return out + err, process.returncode
