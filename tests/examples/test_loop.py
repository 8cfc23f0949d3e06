"""The flat page and the trainer are the same method: same rows, same losses, same weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from builders import scripts
from builders.chats import chat
from builders.jobs import spec_of
from builders.steps import Pad
from builders.tiny import tiny_model, tiny_tokenizer
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.divergences import forward_kl
from potstill.objectives.token import Divergence, TokenLoss
from potstill.strategies.offline import Offline
from potstill.teachers.local import LocalTeacher
from potstill.train.loop import Hooks, train
from potstill.train.step import StudentModule

LOOP = Path(__file__).parents[2] / "examples" / "loop.py"


def test_the_flat_page_gives_the_trainers_losses_and_weights():
    loop = scripts.load("examples/loop.py")
    tokenizer = tiny_tokenizer()
    pairs = [
        (f"w{20 + i} w{30 + i}", " ".join(f"w{40 + (i * j) % 60}" for j in range(1, 3 + i % 5)))
        for i in range(8)
    ]
    steps, rate = 5, 3e-3

    student = tiny_model(seed=0)
    rows = [loop.encode(tokenizer, prompt, answer) for prompt, answer in pairs]
    micro = [loop.collate(rows[:3], 0), loop.collate(rows[3:], 0)]
    losses = loop.distill(tiny_model(seed=1), student, [micro] * steps, rate)

    templater = Templater(tokenizer)
    examples = [
        example
        for i, (prompt, answer) in enumerate(pairs)
        for example in templater.encode_row(Row(str(i), chat(prompt, answer)))
    ]
    assert [list(e.input_ids) for e in examples] == [ids for ids, _ in rows]
    ours, events = tiny_model(seed=0), []
    settings = spec_of(steps=steps, learning_rate=rate, tokens_per_step=10**6, micro_batch_tokens=40)
    loss = TokenLoss(Divergence.from_module(forward_kl))
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    train(
        StudentModule(ours, 128),
        examples,
        teacher,
        Offline(),
        Pad(),
        lambda step: loss,
        settings,
        Hooks(event=events.append),
    )

    torch.testing.assert_close(
        torch.tensor([e["loss"] for e in events]), torch.tensor(losses), atol=1e-5, rtol=1e-4
    )
    assert losses[-1] < losses[0]
    for (name, a), (_, b) in zip(student.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def test_the_flat_page_runs_as_a_script(places):
    done = subprocess.run([sys.executable, str(LOOP), *places], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    student = AutoModelForCausalLM.from_pretrained(places[3])
    assert student.config.num_hidden_layers == 1
    before = AutoModelForCausalLM.from_pretrained(places[1])
    assert not torch.equal(student.lm_head.weight, before.lm_head.weight)


def test_the_flat_page_is_short():
    assert len(LOOP.read_text().splitlines()) <= 150
