"""A teacher that left gives each example the same target, whatever it is read with, and nothing to any other."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import pytest
import torch

from builders import captures
from builders.captures import captured, reading, rows, together
from builders.tiny import tiny_model
from potstill import divergences
from potstill.cache.prefetch import Ahead
from potstill.data.batch import collate, readings
from potstill.data.plan import plan_steps, shard
from potstill.devices import ranks
from potstill.errors import ArtifactError, CacheMiss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.recipe import plugins
from potstill.teachers._context import TeacherContext
from potstill.teachers.cached import build, keys_of, reading_of
from potstill.train.step import StudentModule, accumulate

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
ROWS, MANY = rows(12), rows(40)
STEPS = 50
RANGE = {"initializer_range": 0.1}  # at 0.3 a few tokens decide a tiny teacher's loss
EVERY_DAY = {"forward_kl", "jsd", "reverse_kl"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return captured(tmp_path_factory.mktemp("cache"), ROWS)


def losses(teacher, divergence: Divergence, steps: int) -> list[float]:
    """The losses of a training of many rows, shuffled, 32 at a time."""
    module = StudentModule(tiny_model(seed=7, layers=1, **RANGE), 128)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    loss, dice, values = TokenLoss(divergence), random.Random(0), []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        result = accumulate(module, teacher, [collate(dice.sample(MANY, 32), pad_id=0)], loss)
        assert result is not None
        optimizer.step()
        values.append(result.loss / result.weight)
    return values


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in EVERY_DAY else pytest.mark.prove) for n in divergences.names()],
)
def test_training_from_cached_hidden_states_is_that_of_the_live_teacher(tmp_path, name):
    divergence = Divergence.from_module(plugins.load("divergences", name))
    # The likeliest id is a label, which rounding must not change: a narrow teacher's are as likely as the next ones.
    teacher = captures.teacher(**({} if name == "hard_cross_entropy" else RANGE))
    cached = reading(captured(tmp_path, MANY, teacher), teacher)
    both = [losses(source, divergence, STEPS) for source in (teacher, cached)]
    assert max(abs(live - stored) for live, stored in zip(*both, strict=True)) <= 1e-4
    assert min(both[0]) < both[0][0]


def targets(teacher, batch) -> list[torch.Tensor]:
    """The hidden states of each row of a batch, by themselves."""
    hidden = teacher.signal(batch).hidden
    counts = [sum(read.scored) for read in readings(batch)]
    return list(hidden.split(counts))


@pytest.mark.parametrize("packed", [False, True])
def test_an_example_has_one_target_in_any_batch_order_and_packing(artifact, packed):
    cached, dice = reading(artifact), random.Random(1)
    wanted = {row.id: targets(cached, collate([row], pad_id=0))[0] for row in ROWS}
    for size in (1, 3, 5, 12):
        for _ in range(3):
            picked = dice.sample(ROWS, size)
            got = targets(cached, collate(picked, pad_id=0, packed=packed))
            assert all(torch.equal(one, wanted[row.id]) for one, row in zip(got, picked, strict=True))


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_epoch_reads_the_targets_of_the_first(artifact, epochs):
    """Keys are of the content, so a running index cannot pass the end, and renamed rows are the same rows."""
    cached = reading(artifact)
    first = targets(cached, collate(ROWS, pad_id=0))
    for epoch in range(epochs):
        renamed = [replace(row, id=f"{epoch}-{row.id}") for row in reversed(ROWS)]
        again = targets(cached, collate(renamed, pad_id=0))
        assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


CHANGES = {
    "another token": lambda row: replace(row, input_ids=(row.input_ids[0] ^ 1, *row.input_ids[1:])),
    "a token more": lambda row: replace(row, input_ids=(*row.input_ids, 5), scored=(*row.scored, True)),
    "another scored token": lambda row: replace(row, scored=(False, not row.scored[1], *row.scored[2:])),
    "a token less": lambda row: replace(row, input_ids=row.input_ids[:-1], scored=row.scored[:-1]),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_with_any_other_ids_is_a_miss_that_names_it(artifact, change):
    row = CHANGES[change](ROWS[3])
    with pytest.raises(CacheMiss, match="row r3"):
        reading(artifact).signal(collate([ROWS[0], row], pad_id=0))


@pytest.mark.parametrize(
    "name", ["signals/shard-*.bin", "signals/head.safetensors", "probes.json", "tokenizer/*.json"]
)
def test_a_copy_that_ended_early_is_refused_before_anything_is_read(artifact, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(artifact.path, copy)
    file = next(copy.glob(name))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ArtifactError, match=rf"{file.name} is \d+ bytes, the manifest says .* Copy the folder again"
    ):
        build(TeacherContext(tmp_path, torch.device("cpu"), lambda *parts: None), cache="copy")


def test_a_check_says_whose_word_a_cache_holds_in_one_line(artifact):
    assert reading(artifact).about == f"memory, as captured in {artifact.path} (dense signals)"


def test_a_batch_without_a_scored_token_has_an_empty_signal(artifact):
    signal = reading(artifact).signal(collate([ROWS[0].silent()], pad_id=0))
    assert signal.rows == 0
    mixed = reading(artifact).signal(collate([ROWS[0].silent(), ROWS[1]], pad_id=0))
    assert mixed.rows == ROWS[1].count


def test_two_processes_read_the_targets_of_one(artifact, tmp_path):
    """A step's loss and gradient over both shares is that of one process, to rounding."""
    lengths, counts = [len(r.input_ids) for r in ROWS], [r.count for r in ROWS]
    (step,) = plan_steps(lengths, counts, tokens_per_step=10**6, micro_batch_tokens=40, seed=0, epoch=0)
    loss = TokenLoss(Divergence.from_module(divergences.forward_kl))

    def result() -> float:
        mine = step if ranks.world() == 1 else shard(step, ranks.rank(), ranks.world(), lengths=lengths)
        batches = [collate([ROWS[i] for i in micro] or [ROWS[0].silent()], pad_id=0) for micro in mine]
        made = accumulate(StudentModule(tiny_model(seed=7), 128), reading(artifact), batches, loss)
        assert made is not None
        return made.loss / made.weight

    wanted = result()

    def work() -> None:
        assert abs(result() - wanted) < 1e-6

    together(tmp_path / "meeting", 2, work)


def test_what_is_expected_is_read_in_order_and_a_little_ahead():
    read: list[tuple[bytes, ...]] = []

    def note(keys):
        read.append(tuple(keys))
        return keys

    ahead: Ahead = Ahead(note, depth=2)
    batches = [(bytes([n]),) for n in range(50)]
    pulled = []
    ahead.expect(pulled.append(keys) or keys for keys in batches)
    for number, keys in enumerate(batches):
        assert ahead.take(keys) == keys
        assert len(pulled) <= number + 3
        if number == 10:
            assert ahead.take((b"another",)) == (b"another",)
    ahead.close()
    assert [keys for keys in read if keys != (b"another",)] == batches


def test_a_training_reads_ahead_what_its_plan_says(artifact):
    cached, asked = reading(artifact), [[ROWS[0], ROWS[1]], [ROWS[2]], [ROWS[3].silent()], [ROWS[4]]]
    cached.expect(asked)
    for micro in asked:
        batch = collate(micro, pad_id=0)
        assert keys_of(readings(batch)) == keys_of(map(reading_of, micro))
        assert torch.equal(cached.signal(batch).hidden, reading(artifact).signal(batch).hidden)
    cached.close()
