"""An ensemble is every teacher of its list: who is asked, how much each counts, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders import recipes
from builders.ensembles import Tiny, alone, batch, built, ensemble, experts, reader, routed_rows, said
from builders.steps import ragged_rows
from builders.tiny import EOS, PAD, tiny_model, tiny_tokenizer
from potstill.data.batch import collate
from potstill.errors import RecipeError, SignalError, VocabularyError
from potstill.generate.mixture import Mixture
from potstill.runs.teachers import average_for
from potstill.signals.topk import TopK
from potstill.train.kept import KeptSignals, joined

A, B = {"model": "a"}, {"model": "b"}


@pytest.mark.parametrize("packed", [False, True])
def test_each_row_is_read_by_its_own_teacher_alone(packed):
    first, second = Tiny(1), Tiny(2)
    of = batch(packed)
    got = said(experts(first, second), of)
    owner = of.owners()
    for number, seed in enumerate((1, 2)):
        mine = owner % 2 == number
        torch.testing.assert_close(got[mine], alone(seed, of)[mine], atol=2e-5, rtol=1e-5)
    scored = [row for row in routed_rows() if row.count]
    assert first.asked == [tuple(row.id for row in scored if row.domain == "maths")]
    assert second.asked == [tuple(row.id for row in scored if row.domain == "code")]


def test_a_teacher_without_rows_is_asked_where_no_other_one_is():
    rows = [*routed_rows()[:4], replace(routed_rows()[4], domain="law")]
    teacher = experts(Tiny(1), Tiny(2), Tiny(3))
    weights = teacher.signal(collate(rows, pad_id=0)).weights_by_row(collate(rows, pad_id=0))
    assert weights["r4"] == {"t1": 0.0, "t2": 0.0, "t3": 1.0}
    assert weights["r2"] == {"t1": 1.0, "t2": 0.0, "t3": 0.0}


def test_a_row_that_names_no_teacher_is_refused_by_its_name():
    rows = [replace(row, domain=None if row.id == "r3" else "maths") for row in ragged_rows()]
    with pytest.raises(SignalError, match="no teacher is asked about row r3"):
        experts(Tiny(1), Tiny(2)).signal(collate(rows, pad_id=0))


def test_rows_without_a_scored_token_ask_nobody():
    silent = [replace(row, domain=None).silent() for row in ragged_rows()]
    signal = experts(Tiny(1), Tiny(2)).signal(collate(silent, pad_id=0))
    assert signal.rows == 0
    assert signal.weights_by_row(collate(silent, pad_id=0)) == {}


def test_fixed_weights_are_shares_of_their_sum():
    of = batch()
    got = said(ensemble(Tiny(1), Tiny(2), weights=[1.0, 3.0]), of)
    wanted = (0.25 * alone(1, of).exp() + 0.75 * alone(2, of).exp()).log()
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [None, 128], ids=["whole", "stored"])
@pytest.mark.parametrize("weigh", ["confidence", "gold"])
def test_weights_by_token_follow_their_formula(weigh, k):
    """v_k exp(-H_k), or v_k p_k(y) where data or a teacher wrote the token y and v_k elsewhere; tempered before."""
    rows = [replace(row, origin="student" if row.id == "r2" else "data") for row in ragged_rows()]
    of, own, fixed = collate(rows, pad_id=0), (1.0, 2.0), (2.0, 1.0)
    teacher = ensemble(Tiny(1), Tiny(2, k=k), weigh=weigh, weights=fixed, temperature=own)
    got = teacher.signal(of).weights
    sides = [(alone(seed, of).double() / t).log_softmax(-1) for seed, t in zip((1, 2), own, strict=True)]
    if weigh == "confidence":
        powers = [(side.exp() * side).sum(-1).exp() for side in sides]
    else:
        powers = [
            torch.where(of.hard, side.gather(1, of.targets.unsqueeze(-1)).squeeze(-1).exp(), 1.0)
            for side in sides
        ]
    powers = [v * power for v, power in zip(fixed, powers, strict=True)]
    wanted = torch.stack(powers, -1)
    wanted /= wanted.sum(-1, keepdim=True)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-3)


def test_one_at_a_time_frees_each_teacher_before_the_next_is_asked():
    first, second = Tiny(1), Tiny(2)
    of = batch()
    got = said(ensemble(first, second, one_at_a_time=True), of)
    assert (first.closed, second.closed) == (1, 1)
    assert torch.equal(got, said(ensemble(Tiny(1), Tiny(2)), of))


@pytest.mark.parametrize("make", [experts, ensemble])
def test_signals_of_rows_that_return_are_kept_row_by_row(make):
    first, second = Tiny(1), Tiny(2, k=30)
    of = batch()
    teacher: Any = make(first, second)
    kept = KeptSignals(teacher, lambda: of.row_ids)
    once, again = kept.signal(of), kept.signal(of.rows(torch.arange(7) > 3))
    wanted = joined(
        [teacher.signal(of.rows(torch.arange(7) == row)) for row in range(7)], torch.device("cpu")
    )
    assert torch.equal(once.weights, wanted.weights)
    for got, other in zip(once.signals, wanted.signals, strict=True):
        assert got.rows == other.rows
    assert again.rows == of.rows(torch.arange(7) > 3).count
    passes = len(first.asked)
    kept.signal(of)
    assert len(first.asked) == passes


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_a_batch_can_be_taken_alone(packed):
    kept = torch.tensor([True, False, True, True, False, False, True])
    rows = routed_rows()
    got = batch(packed).rows(kept)
    wanted = collate([row for row, stays in zip(rows, kept, strict=True) if stays], pad_id=0, packed=packed)
    for name, value in vars(wanted).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(got, name), value), name
        else:
            assert getattr(got, name) == value, name


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ([A], {}, "lists at least two teachers"),
        ([A, A], {}, "2 teachers are called t1"),
        (
            [A, {**B, "weight": 0}],
            {},
            r"ensemble\.1\.weight: must be a number above 0, not 0\. Take the teacher out",
        ),
        ([A, {**B, "weight": True}], {}, "must be a number above 0"),
        ([A, {**B, "temperature": -1}], {}, r"ensemble\.1\.temperature"),
        ([A, {**B, "rows": "x"}], {}, "no effect without teacher.route"),
        ([A, {**B, "name": ""}], {}, r"ensemble\.1\.name"),
        ([A, B], {"writes": "c"}, "no teacher is called 'c'. Write mixture, or one of t1, t2"),
        ([A, {"model": "text"}], {}, "gives text alone"),
        ([A, {"model": "drawn"}], {}, "cannot be averaged with what others say.*combine: losses"),
        ([A, {"model": "several"}], {}, "is an ensemble itself"),
        ([A, {"model": "layered"}], {}, r"ensemble\.1: is read block by block"),
        ([A, {"model": "remembers"}], {}, r"ensemble\.1\.cache: has no effect in an ensemble"),
        ([A, {"model": "drawn"}], {"combine": "losses", "weigh": "gold"}, "teacher.weigh: cannot be gold"),
        ([A, {"model": "drawn"}], {"combine": "losses", "weigh": "confidence"}, "cannot be confidence"),
        (
            [A, {"model": "vectors"}],
            {"combine": "losses"},
            r"ensemble\.1: gives the mean of a student's head",
        ),
    ],
)
def test_a_list_that_cannot_be_is_refused_with_its_place(values, options, words):
    text, drawn, remembers = Tiny(4), Tiny(5), Tiny(8)
    remembers.remembers = True
    layered, vectors = Tiny(9), Tiny(10)
    layered.batchwise = False
    vectors.provides = frozenset({"vector"})
    text.provides, drawn.provides = frozenset({"text"}), frozenset({"sampled"})
    more = {
        "text": text,
        "drawn": drawn,
        "several": ensemble(Tiny(6), Tiny(7)),
        "remembers": remembers,
        "layered": layered,
        "vectors": vectors,
    }
    with pytest.raises(RecipeError, match=words):
        built(*values, **options, teachers=more)


def test_teachers_of_two_vocabularies_are_refused_by_the_first_id_that_differs():
    other = Tiny(2)
    other.reads = reader(tiny_tokenizer(names={50: "odd"}))
    with pytest.raises(VocabularyError, match="id 50 is 'w50' for t1 and 'odd' for t2"):
        built(A, B, teachers={"b": other})
    longer = Tiny(2)
    longer.reads = reader(tiny_tokenizer(130))
    with pytest.raises(VocabularyError, match="0 ids of t1 alone, 2 of t2 alone"):
        built(A, B, teachers={"b": longer})


def test_an_average_of_raw_logits_is_no_option():
    wrong = recipes.problems(teacher={"ensemble": [{"model": "x"}, {"model": "y"}], "combine": "logits"})
    assert "auto or probabilities or log_probabilities or losses" in wrong["teacher.ensemble.combine"]


@pytest.mark.parametrize(
    ("stages", "average", "why"),
    [
        ([{"distill": {}}], "probabilities", "right for forward KL"),
        ([{"distill": {"divergence": "reverse_kl"}}], "log_probabilities", "product of experts"),
        (
            [{"distill": {"name": "warm"}}, {"distill": {"name": "polish", "divergence": "reverse_kl"}}],
            "probabilities",
            "polish compares by reverse KL",
        ),
        (["finetune"], "probabilities", "forward KL"),
    ],
)
def test_the_average_follows_the_divergence_of_the_stages(stages, average, why):
    got = average_for(recipes.read(*stages).stages)
    assert got[0] == average
    assert why in got[1]
    teacher = built(A, B)
    assert teacher.average[0] == "probabilities"


def test_what_decides_about_what_is_said_identifies_an_ensemble():
    def of(**changes: Any) -> str:
        return ensemble(*changes.pop("of", (Tiny(1), Tiny(2))), **changes).fingerprint

    assert of() == of() == of(one_at_a_time=True)
    different = [
        of(), of(combine="losses"), of(weigh="gold"), of(weights=[1.0, 2.0]), of(of=(Tiny(1), Tiny(3))),
        of(temperature=[1.0, 2.0]), of(route="x", rows=[frozenset("a"), None]),
    ]  # fmt: skip
    assert len(set(different)) == len(different)


def test_every_teacher_is_named_with_its_part():
    about = experts(Tiny(1), Tiny(2), Tiny(3), weights=[1.0, 2.0, 1.0]).about
    assert about.startswith(
        "3 teachers: t1 (weight 0.25, rows maths); t2 (weight 0.5, rows code); t3 (weight 0.25"
    )
    assert "all other rows" in about


class Loadable(Tiny):
    """A tiny teacher whose model can be asked to write."""

    def loaded(self) -> Any:

        return SimpleNamespace(model=tiny_model(seed=int(self.name[1:])))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.7])
@pytest.mark.parametrize("combine", ["probabilities", "log_probabilities"])
def test_a_mixture_draws_each_token_from_the_average_with_caches_in_step(combine, temperature):
    from potstill.generate.local import generate
    from potstill.generate.sampling import Sampling

    teacher = ensemble(Loadable(1), Loadable(2), combine=combine, weights=[1.0, 2.0], temperature=[1.0, 1.5])
    assert "text" in teacher.provides
    writer = teacher.writer(temperature)
    assert isinstance(writer, Mixture)
    prompts = [[1, 10, 11], [1, 30, 31, 32, 11]]
    settings: dict[str, Any] = {"stop_ids": [EOS], "pad_id": PAD, "seed": 3, "batch_rows": 2}
    done = list(generate(writer, prompts, Sampling(6, temperature), vocabulary=128, **settings))
    t = temperature or 1.0
    for one in done:
        ids = prompts[one.index] + list(one.ids)
        logits = [tiny_model(seed=seed)(torch.tensor([ids])).logits[0].detach() for seed in (1, 2)]
        sides = [(z / (t * own)).log_softmax(-1) for z, own in zip(logits, (1.0, 1.5), strict=True)]
        if combine == "probabilities":
            wanted = (sides[0].exp() / 3 + 2 * sides[1].exp() / 3).log()
        else:
            wanted = (sides[0] / 3 + 2 * sides[1] / 3).log_softmax(-1)
        for place in range(len(prompts[one.index]), len(ids)):
            got = writer(input_ids=torch.tensor([ids[:place]]), past_key_values=None).logits[0, -1] / t
            torch.testing.assert_close(got, wanted[place - 1], atol=1e-4, rtol=1e-3)
            if temperature == 0:
                assert ids[place] == int(wanted[place - 1].argmax())


def test_a_gold_token_that_nobody_finds_possible_leaves_the_fixed_weights():
    """Sure teachers store one id and no tail."""
    sure = Tiny(1, k=1), Tiny(2, k=1)
    for teacher in sure:
        teacher.signal = lambda batch: TopK(torch.zeros(batch.count, 1).long(), torch.zeros(batch.count, 1))
    weights = ensemble(*sure, weigh="gold", weights=[3.0, 1.0]).signal(batch()).weights
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25]).expand_as(weights))


def test_experts_write_by_the_teacher_that_the_recipe_names_or_not_at_all():
    assert "text" not in experts(Loadable(1), Loadable(2)).provides
    named = experts(Loadable(1), Loadable(2), writes="t2")
    assert "text" in named.provides
    state = named.writer(1.0).state_dict()
    wanted = tiny_model(seed=2).state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
