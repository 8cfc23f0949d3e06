"""A capture for a student that keeps its head, and what trains from it."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from builders import captures, jobs, recipes
from builders.captures import forked, hashes, reading, rows
from builders.tiny import tiny_model
from potstill.cache.reader import Cache
from potstill.errors import CacheMiss, RecipeError
from potstill.stages import _capture
from potstill.stages._context import State
from potstill.stages._later import needs_of
from potstill.stages._vectors import require_frozen
from potstill.teachers.cached import SIGNALS

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
ROWS = rows(12)
STEPS = {"steps": 6, "learning_rate": 3e-3, "tokens_per_step": 30}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return jobs.student(tmp_path_factory.mktemp("student"), tiny_model(seed=2))


def job(folder, student, **options):
    one = captures.job(
        folder, ROWS, kinds=("kl_vector",), **{"signal": "kl_vector", "max_kl_nats": 1e-9} | options
    )
    return replace(one, state=State(student=student, untrained=student))


@pytest.fixture(scope="module")
def captured(tmp_path_factory, student):
    return _capture.made(job(tmp_path_factory.mktemp("captured"), student))


def losses(artifact) -> list[float]:
    return [event["loss"] for kind in ("step", "validation") for event in jobs.events(artifact.path, kind)]


def test_training_from_vectors_is_that_beside_the_live_teacher(tmp_path, student, captured):
    """Losses of steps and validations to 1e-4; the body moves, and the head does not."""
    how = STEPS | {"freeze_head": True, "validate_every": 3}
    live = jobs.trained(tmp_path / "live", student, captures.teacher(), ROWS, **how)
    cached = jobs.trained(tmp_path / "cached", student, reading(captured), ROWS, **how)
    torch.testing.assert_close(losses(cached), losses(live), rtol=0, atol=1e-4)
    assert losses(cached)[0] != losses(cached)[5]
    assert captured.facts["signal"] == "kl_vector"
    before, after, beside = (
        load_file(one.path / "student" / "model.safetensors") for one in (student, cached, live)
    )
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    for name, value in after.items():
        assert (value - beside[name]).abs().mean() < 1e-4
        assert name == "lm_head.weight" or not torch.equal(value, before[name])


def test_a_student_with_another_head_is_refused_and_its_capture_is_another(tmp_path, student, captured):
    other = jobs.student(tmp_path / "other", tiny_model(seed=5))
    assert job(tmp_path / "a", other).key != job(tmp_path / "b", student).key
    with pytest.raises(
        CacheMiss, match=r"vectors of the student head \w{16}, and distill trains .* the head \w{16}"
    ):
        jobs.trained(tmp_path / "trained", other, reading(captured), ROWS, freeze_head=True)


def test_a_stage_that_trains_the_head_is_refused(tmp_path, student, captured):
    with pytest.raises(RecipeError, match=r"freeze_head: is needed"):
        jobs.trained(tmp_path, student, reading(captured), ROWS)


def test_a_recipe_whose_stage_trains_the_head_beside_vectors_is_refused_as_it_is_read(captured):
    teacher = reading(captured)
    for options, live in ({"freeze_head": True}, False), ({"strategy": "on_policy"}, True):
        (stage,) = recipes.read({"distill": options}).stages
        assert ("live" in stage.asks) is live
        require_frozen(stage, teacher)
    with pytest.raises(RecipeError, match=r"stages.polish.freeze_head: is needed"):
        require_frozen(recipes.read({"distill": {"name": "polish"}}).stages[0], teacher)


def test_auto_takes_vectors_where_nothing_smaller_keeps_to_the_limit(tmp_path, student):
    """Draws cost less, until the bound is below their noise."""
    kinds = ("hidden", "topk", "sampled", "topk_sampled", "kl_vector")
    after = {"distill": {"freeze_head": True}}
    for limit, wanted in ((0.05, "topk_sampled"), (1e-6, "kl_vector")):
        one = job(tmp_path / wanted, student, signal="smallest", max_kl_nats=limit)
        stages = recipes.read(stages=["capture", after]).stages
        one = replace(one, needs=replace(one.needs, kinds=kinds), context=replace(one.context, stages=stages))
        made = _capture.made(one)
        assert made.facts["signal"] == wanted
        assert made.facts["measured"]["kl_mean"] <= limit
        assert Cache.open(made.path / SIGNALS).verify() == []


def test_a_capture_of_vectors_that_is_killed_leaves_the_undisturbed_bytes(tmp_path, student, captured):
    killed(tmp_path, student, captured, 2)


@pytest.mark.prove
def test_a_capture_of_vectors_that_is_killed_fifty_times_leaves_the_undisturbed_bytes(
    tmp_path, student, captured
):
    killed(tmp_path, student, captured, 50)


def killed(folder, student, undisturbed, times: int) -> None:
    """Kill a capture at random instants until it was killed so often; what is finished is the undisturbed one."""
    began = time.monotonic()
    assert forked(lambda: _capture.made(job(folder / "timed", student))) == 0
    length, dice, done = time.monotonic() - began, random.Random(times), 0
    while done < times:
        done += forked(lambda: _capture.made(job(folder, student)), dice.uniform(0, 1.2 * length)) == 9
        place = folder / "store" / undisturbed.path.name
        if place.exists() and done < times:
            assert hashes(place) == hashes(undisturbed.path)
            shutil.rmtree(place)
    assert hashes(_capture.made(job(folder, student)).path) == hashes(undisturbed.path)


FROZEN = {"freeze_head": True}


@pytest.mark.parametrize(
    ("stages", "usable"),
    [
        ([{"distill": FROZEN}], True),
        ([{"finetune": FROZEN}, {"distill": FROZEN}], True),
        ([{"distill": FROZEN}, {"finetune": {}}], True),
        ([{"distill": {}}], False),
        ([{"finetune": {}}, {"distill": FROZEN}], False),
        ([{"distill": FROZEN | {"divergence": "reverse_kl"}}], False),
        ([{"distill": FROZEN | {"divergence": "soft_cross_entropy"}}], False),
        ([{"distill": FROZEN | {"temperature": 2.0}}], False),
        ([{"distill": FROZEN | {"token_weights": "entropy"}}], False),
    ],
)
def test_vectors_are_for_forward_kl_at_one_beside_a_head_that_nobody_trains(stages, usable):
    after = recipes.read(stages=["capture", *stages]).stages
    assert ("kl_vector" in needs_of(after, "capture").kinds) is usable
    asked = recipes.read(stages=[{"capture": {"signal": "kl_vector"}}, *stages]).stages
    if not usable:
        with pytest.raises(RecipeError, match=r"kl_vector cannot be read later: .*Use .*hidden"):
            needs_of(asked, "capture")


def test_a_frozen_head_that_is_the_embedding_too_keeps_both(tmp_path):
    start = jobs.student(tmp_path / "tied", tiny_model(seed=2, tie_word_embeddings=True))
    made = jobs.trained(tmp_path / "trained", start, captures.teacher(), ROWS, freeze_head=True, **STEPS)
    before, after = (load_file(one.path / "student" / "model.safetensors") for one in (start, made))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(("kind", "limit", "close"), [("hidden", 1e-6, 1e-5), ("kl_vector", 1e-8, 1e-3)])
def test_a_student_that_reads_its_own_words_from_a_cache_has_nothing_to_learn(
    tmp_path, student, kind, limit, close
):
    """Three epochs in shuffled steps of two micro-batches, the last ones short; then with the rows in another order."""
    own = jobs.Memory(tiny_model(seed=2))
    one = captures.job(tmp_path, ROWS, own, kinds=(kind,), signal=kind, max_kl_nats=limit)
    made = _capture.made(replace(one, state=State(student=student, untrained=student)))
    how = {
        "freeze_head": kind == "kl_vector", "steps": None, "epochs": 3,
        "tokens_per_step": 20, "micro_batch_tokens": 30,
    }  # fmt: skip
    for order in (ROWS, ROWS[::-1]):
        place = tmp_path / order[0].id
        done = jobs.trained(place, student, reading(made, own), order, validation=(), **how)
        assert len(losses(done)) > 6
        assert max(abs(loss) for loss in losses(done)) < close
