"""What a stage says of a student that learns from its own text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from builders.jobs import Memory, events, saying
from builders.recipes import read
from builders.steps import local_teacher
from builders.tiny import EOS, tiny_model
from builders.written import on_policy
from potstill.devices import ranks
from potstill.objectives.closeness import SUMS
from potstill.stages import _own_text
from potstill.stages._objective import objective_of
from potstill.stages._own_text import VALIDATED
from potstill.train.step import StudentModule
from potstill.train.writer import Writer
from potstill.types import Example, Reading

WARM = {
    "overlap": 0.7,
    "agreement": 0.6,
    "repetition": 0.02,
    "truncated": 0.9,
    "early_kl": 0.5,
    "late_kl": 0.7,
}


def stage(**options):
    return read({"distill": {"steps": 2, **options}}).stages[0]


ON_POLICY = {"strategy": {"on_policy": {"max_new_tokens": 8}}}


def test_a_warm_student_is_not_called_cold():
    assert not _own_text.is_cold(WARM)
    assert not _own_text.is_cold({})


@pytest.mark.parametrize("cold", [{"overlap": 0.39}, {"agreement": 0.39}, {"repetition": 0.26}])
def test_a_student_far_from_its_teacher_or_in_loops_is_cold(cold):
    assert _own_text.is_cold(WARM | cold)


def test_the_figures_in_words_name_what_was_measured_alone():
    said = _own_text.in_words({"overlap": 0.5, "late_kl": 0.9})
    assert said == "of the teacher's 16 likeliest ids 50% are among the student's, 0.90 in second ones"


def test_only_a_stage_whose_student_writes_is_watched():
    assert _own_text.on_policy(stage()) is None
    assert _own_text.on_policy(stage(**ON_POLICY)) is not None
    assert _own_text.on_policy(read("finetune").stages[0]) is None


def test_the_terms_of_an_on_policy_stage_also_measure_closeness():
    spec = stage(**ON_POLICY)
    terms = _own_text.with_closeness(spec, objective_of(spec).terms(0, 2))
    assert terms[-1][1].totals == SUMS
    plain = objective_of(stage()).terms(0, 2)
    assert _own_text.with_closeness(stage(), plain) is plain


def test_a_conversations_answer_is_its_last_one():
    """A rollout stands for it alone, however many turns come before."""
    turn = ((5, 6, 7, 2), (False, True, True, True))
    talk = Example("a", (1, *turn[0] * 3), (False, *turn[1] * 3))
    cut = replace(talk, input_ids=(*talk.input_ids[:-1], 7))
    assert _own_text.answer_tokens([talk, cut], {2}, 8) == [3, 8]


def test_an_answer_that_was_cut_is_as_long_as_a_rollout_may_be():
    ended, cut, longer, none = (
        Example(name, ids, tuple(i >= len(ids) - scored for i in range(len(ids))))
        for name, ids, scored in (
            ("a", (1, 5, 6, 2), 2), ("b", (1, 5, 6, 7), 2), ("c", (1, *[5] * 12), 12), ("d", (1, 5), 0),
        )
    )  # fmt: skip
    assert _own_text.answer_tokens([ended, cut, longer, none], {2}, 8) == [2, 8, 12]


def test_first_rollouts_are_counted_once_however_many_processes_write_them(monkeypatch):
    spec, model = stage(**ON_POLICY), StudentModule(tiny_model(), 128)
    writer = Writer(model, 0, False, 64, 0, 1, stop_ids=(2,), vocabulary=128)
    row = Example("a", (1, 5, 6, 2), (False, False, True, True))
    alone = _own_text.first_rollouts(spec, model, local_teacher(), writer, [row])
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "gather", lambda value: [value, value])
    together = _own_text.first_rollouts(spec, model, local_teacher(), writer, [row])
    assert together["rollouts"] == alone["rollouts"] == 1
    assert together["rollout_tokens"] == alone["rollout_tokens"]


def test_the_distance_on_its_own_answers_to_validation_prompts_can_choose_the_weights(tmp_path):
    """Models of one distribution everywhere: the figure is their KL, whatever the student wrote."""
    ours, theirs = {5: 1.0, 6: 0.5, EOS: 1.0}, {5: 0.0, 6: 1.0, EOS: 0.5}
    q, p = (torch.tensor(list(logits.values())).double().log_softmax(-1) for logits in (ours, theirs))
    how = {"teacher": Memory(saying(theirs)), "validate_every": 2, "best_by": "own_kl"}
    still = on_policy(tmp_path / "still", model=saying(ours), learning_rate=0.0, **how)
    measured = [event["own_kl"] for event in events(still.path, "validation")]
    assert measured == pytest.approx([float((q.exp() * (q - p)).sum())] * 4, rel=1e-5)
    made = on_policy(tmp_path / "moving", validate_every=2, best_by="own_kl")
    own = {event["step"]: event["own_kl"] for event in events(made.path, "validation") if event["step"]}
    assert made.facts["best_step"] == min(own, key=own.__getitem__)
    assert made.facts["best_loss"] == min(own.values())


def test_short_and_long_rows_are_answered_of_those_that_leave_room_in_both_readings(tmp_path, monkeypatch):
    asked: list[int] = []
    write = Writer.write

    def noted(self, prompts, *args, **options):
        asked.extend(map(len, prompts))
        return write(self, prompts, *args, **options)

    monkeypatch.setattr(Writer, "write", noted)

    def row(length: int, theirs: int) -> Example:
        ids, read = (1, *[9] * (length - 1), EOS), (1, *[9] * (theirs - 1), EOS)
        scored, by_teacher = ((False,) * count + (True,) for count in (length, theirs))
        return Example(f"v{length}", ids, scored, reading=Reading(read, by_teacher))

    lengths = range(3, 3 + 2 * VALIDATED)
    fit = [row(length, length + 1) for length in lengths]
    crowded = [row(100, 256 - 8 + 1), row(256 - 8 + 1, 50)]
    one = [replace(row(3, 4), id="r")]
    on_policy(tmp_path, one, validation=[*fit, *crowded], best_by="own_kl", steps=1, tokens_per_step=1)
    assert asked[:VALIDATED] == list(lengths)[1::2]
    assert max(asked) <= max(lengths)


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("rise", [0.1, 0.0])
def test_a_share_that_nothing_raises_is_warned_of(tmp_path, capsys, validated, rise):
    """DistiLLM's share rises by what validation rows say: without any it stays as it is."""
    kept = {} if validated else {"validation": ()}
    made = on_policy(tmp_path, strategy={"on_policy_fraction": 0.5, "adaptive": rise}, steps=1, **kept)
    said = (
        "no row is validated on, so the share that the student writes never rises" in capsys.readouterr().err
    )
    assert said == (bool(rise) and not validated)
    assert {event.get("on_policy_fraction") for event in events(made.path, "step")} == {0.5 if rise else None}


def test_the_last_weights_are_exported_whatever_validations_say(tmp_path):
    never = on_policy(tmp_path / "never", validation=())
    last = on_policy(tmp_path / "last", validate_every=1, best_by="last")
    one, other = (load_file(made.path / "student/model.safetensors") for made in (never, last))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert last.facts["best_step"] == 6
    assert not list(last.path.glob(".checkpoints/best-*"))
