"""What the student writes is what it is trained on: every token of it, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from builders.jobs import Memory, events, saying, student, trained
from builders.tiny import EOS, tiny_model
from builders.written import Scripted, assert_equal, on_policy, rows
from potstill.data.batch import collate
from potstill.errors import RecipeError
from potstill.generate.request import Completion
from potstill.recipe.specs import StrategyChoice
from potstill.strategies import on_policy as plugin
from potstill.strategies._rollouts import rollout
from potstill.types import Batch, Example, Reading


def steps_of(strategy: Any, sampler: Scripted, examples: list[Example], count: int) -> Iterator[list[Batch]]:
    """The batches of so many steps, two rows each, as the loop asks for them."""
    coming = [[examples[i : i + 2]] for _ in range(count) for i in range(0, len(examples), 2)]
    while count:
        given = [] if strategy.holds() else coming.pop(0)
        batches = list(strategy.batches(sampler, given))
        if batches:
            count -= 1
            yield batches
            strategy.observe({})


def test_a_fraction_of_0_is_offline_training_bit_for_bit(tmp_path):
    never = on_policy(tmp_path / "never", strategy={"on_policy_fraction": 0.0})
    start = student(tmp_path / "offline/s", tiny_model())
    options = {"steps": 6, "learning_rate": 1e-3, "tokens_per_step": 10}
    assert_equal(never, trained(tmp_path / "offline", start, Memory(tiny_model(seed=1)), rows(), **options))
    assert {event["on_policy"] for event in events(never.path, "step")} == {0.0}


def test_a_fraction_of_1_never_touches_the_answers_of_the_rows(tmp_path):
    """Other answers of the same lengths: the same training."""
    others = [
        replace(row, input_ids=(*row.prompt, *(4 + (7 * i) % 90 for i in range(row.count)))) for row in rows()
    ]
    quiet = {"validation": ()}
    one, other = on_policy(tmp_path / "a", **quiet), on_policy(tmp_path / "b", others, **quiet)
    assert_equal(one, other)
    for event in events(one.path, "step"):
        assert event["on_policy"] == 1.0
        assert event["tokens"] == event["rollout_tokens"]


def test_which_steps_are_on_policy_depends_on_seed_and_step_alone():
    def decisions(seed: int, examples: list[Example]) -> list[bool]:
        strategy = plugin.build(on_policy_fraction=0.5)
        steps = steps_of(strategy, Scripted(seed=seed), examples, 40)
        return [not bool(batches[0].hard.any()) for batches in steps]

    assert decisions(0, rows()) == decisions(0, rows(4, answer=2))
    assert decisions(0, rows()) != decisions(1, rows())
    assert 10 <= sum(decisions(0, rows())) <= 30


def test_prompts_are_never_trained_on_and_scored_tokens_are_the_same_as_of_data():
    """The same text once as data and once as a generation."""
    (data,) = rows(1)
    written = rollout(data, Completion(0, 0, data.input_ids[3:], "stop"), name="r0@1", version=7)
    assert (written.input_ids, written.scored) == (data.input_ids, data.scored)
    assert (written.origin, written.version, written.row_id) == ("student", 7, "r0")
    assert (data.asked_by, written.asked_by) == ("r0", "r0")
    assert not collate([written], pad_id=0).hard.any()


def test_a_rollout_follows_the_last_answer_of_a_conversation():
    talk = Example("t", (1, 5, 6, 2, 7, 8, 9, 2), (False, True, True, True, False, False, True, True))
    assert talk.prompt == (1, 5, 6, 2, 7, 8)
    written = rollout(talk, Completion(0, 0, (30, 31, 32), "length"), name="t@1", version=0)
    assert written.input_ids == (1, 5, 6, 2, 7, 8, 30, 31, 32)
    assert written.scored == (False,) * 6 + (True,) * 3
    assert written.truncated


def test_the_teachers_reading_of_a_row_gets_the_same_answer():
    read = Example(
        "r", (1, 5, 2), (False, False, True), reading=Reading((7, 7, 5, 2), (False,) * 3 + (True,))
    )
    written = rollout(read, Completion(0, 0, (9, 2), "stop"), name="r@1", version=0)
    assert written.reading == Reading((7, 7, 5, 9, 2), (False,) * 3 + (True, True))


def test_micro_batches_are_cut_by_the_true_lengths():
    """Rows of eight tokens become rollouts of four to thirty."""
    sampler = Scripted(text=lambda prompt, seed, sample: [20] * (1 + seed % 26) + [EOS])
    strategy = plugin.build()
    batches = strategy.batches(sampler, [rows(12)])
    sizes = [tuple(batch.input_ids.shape) for batch in batches]
    assert sum(count for count, _ in sizes) == 12
    assert all(count == 1 or count * length <= sampler.micro_batch_tokens for count, length in sizes)
    assert len({length for _, length in sizes}) > 1


def test_rows_with_the_same_prompt_have_draws_of_their_own_and_every_step_others():
    twins = [replace(rows(1)[0], id=name) for name in ("a", "b")]
    sampler = Scripted()
    list(steps_of(plugin.build(), sampler, twins, 3))
    assert len(set(sampler.seeds)) == 6
    again = Scripted()
    list(steps_of(plugin.build(), again, twins[::-1], 3))
    assert set(again.seeds) == set(sampler.seeds)


def test_prompts_are_written_to_as_they_stand_in_the_rows():
    sampler = Scripted()
    list(steps_of(plugin.build(), sampler, rows(), 3))
    assert sampler.asked == [row.prompt for row in rows()]


def test_a_student_that_stops_at_once_is_trained_on_its_end_token(tmp_path, caplog):
    """Field case 47: length 0 in the log, one scored token a row, one warning, and numbers everywhere."""
    made = on_policy(tmp_path, model=saying({EOS: 50.0, 5: 0.0}), learning_rate=0.0)
    steps = events(made.path, "step")
    assert [event["rollout_length"] for event in steps] == [0.0] * 6
    assert [event["tokens"] for event in steps] == [event["rollouts"] for event in steps]
    assert all(event["loss"] == event["loss"] for event in steps)
    assert caplog.text.count("every text of the student is empty") == 1


def test_a_proposal_that_the_teacher_refuses_is_written_by_the_teacher(tmp_path):
    """A student that says 5, a teacher that says 6 and then ends: what is trained on are the teacher's tokens."""
    seen = []

    class Noting(Memory):
        def signal(self, batch: Batch) -> Any:
            seen.extend(batch.targets.tolist())
            return super().signal(batch)

    teacher = Noting(saying({6: 0.0, EOS: 0.0}))
    how = {"validation": (), "learning_rate": 0.0, "steps": 2}
    on_policy(tmp_path, strategy={"proposals": 2}, model=saying({5: 0.0}), teacher=teacher, **how)
    answers = {token for row in rows() for token in row.input_ids[3:]}
    assert set(seen) - answers == {6, EOS} - answers
    assert seen.count(6) > 0
    assert 5 not in seen


def test_the_teacher_writes_nothing_where_the_student_does(tmp_path):
    class Silent(Memory):
        def loaded(self) -> Any:
            raise AssertionError("the teacher is asked for text")

    on_policy(tmp_path, teacher=Silent(tiny_model(seed=1)), steps=2)


def test_packed_rollouts_give_the_losses_of_padded_ones(tmp_path):
    """Kept signals are cut at the examples of a packed batch too."""
    how = {"strategy": {"collect": 2, "inner_epochs": 2, "samples": 3}, "micro_batch_tokens": 50}
    padded, packed = (on_policy(tmp_path / str(packing), packing=packing, **how) for packing in (False, True))
    losses = [[event["loss"] for event in events(made.path, "step")] for made in (padded, packed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_every_row_counts_once_where_rows_are_normalised(tmp_path):
    """A student of one distribution everywhere: the loss does not depend on the lengths that it wrote."""
    how = {"model": saying({5: 1.0, 6: 0.5, EOS: 1.0}), "learning_rate": 0.0, "validation": ()}
    teacher = Memory(saying({5: 0.0, 6: 1.0, EOS: 0.5}))
    made = on_policy(tmp_path, teacher=teacher, normalize="sequence_mean", **how)
    first, *others = events(made.path, "step")
    assert all(event["loss"] == pytest.approx(first["loss"], rel=1e-5) for event in others)
    assert len({event["tokens"] for event in others}) > 1


def test_a_teacher_that_is_not_here_cannot_write_beside_the_student(tmp_path):
    class Far(Memory):
        loaded = property()

    with pytest.raises(RecipeError, match="cannot write beside the student") as refused:
        on_policy(tmp_path, strategy={"teacher_share": 0.2}, teacher=Far(tiny_model(seed=1)))
    assert "teacher_share" in refused.value.fix


def test_a_completion_that_is_cut_is_marked_and_counted():
    sampler = Scripted(text=lambda prompt, seed, sample: [20] * 50)
    strategy = plugin.build(max_new_tokens=4)
    list(steps_of(strategy, sampler, rows(2), 1))
    figures = strategy.figures()
    assert figures["truncated"] == 1.0
    assert figures["rollout_length"] == 4.0


def test_collected_steps_are_written_by_one_student_and_trained_on_as_often_as_asked():
    strategy = plugin.build(collect=3, inner_epochs=2)
    names = []
    for batches in steps_of(strategy, Scripted(), rows(), 12):
        names.append(tuple(sorted(name for batch in batches for name in batch.row_ids)))
    first, second = names[:6], names[6:]
    assert Counter(first) == dict.fromkeys(set(first), 2)
    assert len(set(first)) == 3
    assert set(first).isdisjoint(second)
    assert set(first[:3]) == set(first[3:]), "one pass over all of them, then the next"


def test_kept_answers_have_a_size_and_an_age():
    strategy = plugin.build(replay=4, max_age=3, refresh=0.0)
    ages = []
    for _ in steps_of(strategy, Scripted(), rows(), 20):
        ages.append(strategy.figures().get("rollout_age", 0.0))
        assert len(strategy.replay.rows) <= 4
    assert 0 < max(ages) <= 3
    assert ages.count(0.0) > 4, "answers too old are written anew"


def test_a_buffer_smaller_than_a_step_is_trained_on_whole():
    strategy, sampler = plugin.build(replay=1, refresh=0.0), Scripted()
    names = [[n for b in batches for n in b.row_ids] for batches in steps_of(strategy, sampler, rows(), 5)]
    assert [len(step) for step in names] == [2, 1, 1, 1, 1]
    assert len(sampler.asked) == 2


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, [2.0] * 6),
        ({"collect": 3}, [6.0, 0, 0] * 2),
        ({"inner_epochs": 3}, [2.0, 0, 0] * 2),
        ({"replay": 2, "refresh": 0.0}, [2.0, 0, 0, 0, 0, 0]),
    ],
    ids=str,
)
def test_what_is_written_is_counted_once_in_the_step_behind_it(options, written):
    strategy, sampler, seen = plugin.build(**options), Scripted(), []
    for batches in steps_of(strategy, sampler, rows(), 6):
        assert batches
        figures = strategy.figures()
        seen.append(figures.get("written", 0))
        assert ("generation_seconds" in figures) == bool(seen[-1])
        assert figures.get("written_tokens", 0) == 2 * seen[-1]
    assert seen == written
    assert sum(seen) == len(sampler.asked)


def test_fewer_steps_write_as_the_training_goes_on():
    """DistiLLM: new answers in a share 1 - t/T of the steps once the buffer is full."""
    strategy = plugin.build(replay=2)
    sampler = Scripted(steps=400)
    written = ["rollout_age" not in strategy.figures() for _ in steps_of(strategy, sampler, rows(), 400)]
    quarters = [sum(written[i : i + 100]) for i in range(0, 400, 100)]
    assert quarters == sorted(quarters, reverse=True)
    assert quarters[0] > 75
    assert quarters[3] < 25


def test_the_state_of_a_strategy_survives_json():
    sampler = Scripted(scores=True)
    strategy = plugin.build(replay=4, refresh=0.5)
    list(steps_of(strategy, sampler, rows(), 5))
    again = plugin.build(replay=4, refresh=0.5)
    again.restore(json.loads(json.dumps(strategy.state())))
    assert again.state() == strategy.state()
    assert again.replay.rows == strategy.replay.rows


@pytest.mark.parametrize(
    "options",
    [
        {"on_policy_fraction": 1.5},
        {"teacher_share": 1.0},
        {"samples": 0},
        {"samples": 2, "sampling_temperature": 0.0},
        {"proposals": 25, "teacher_share": 0.2},
        {"teacher_share": 0.2, "sampling_temperature": 0.0},
        {"proposals": 5, "sampling_temperature": 0.0},
        {"adaptive": 0.1},
        {"max_age": 3},
        {"refresh": 0.5},
        {"replay": 4, "refresh": 1.0},
        {"collect": 2, "on_policy_fraction": 0.5},
        {"inner_epochs": 2, "replay": 4},
        {"max_new_tokens": 0},
    ],
    ids=str,
)
def test_options_without_effect_or_out_of_range_are_refused(options):
    with pytest.raises(RecipeError) as refused:
        plugin.build(**options)
    assert refused.value.path in options
    assert refused.value.fix


def test_a_recipe_names_the_strategy_with_its_options():
    choice = StrategyChoice(name="on_policy", options={"on_policy_fraction": 0.5, "samples": 4})
    assert choice.option_named("STUDENT_WRITES") == 0.5
    assert choice.option_named("NEW_TOKENS") == 128
