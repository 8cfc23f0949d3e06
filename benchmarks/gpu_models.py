"""A training step on a GPU, with models of random weights: no file is read, no figure is of quality."""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_clock import Clock, Result, release
from protocol import installed

from potstill.types import Batch, Example

VOCABULARY, TINY_VOCABULARY = 151936, 515
STUDENT = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072}
TEACHER = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728}
SHARED = {"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
TINY_SHARED = {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
BATCH, LENGTH, STEPS = 8, 1024, 4


def model(device: torch.device, dtype: torch.dtype, size: dict[str, int], *, tiny: bool, seed: int) -> Any:
    """A Qwen3 of this size with random weights, made on the device."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    shape: dict[str, Any] = TINY | TINY_SHARED if tiny else size | SHARED
    vocabulary = TINY_VOCABULARY if tiny else VOCABULARY
    config = Qwen3Config(
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **shape,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def examples(tiny: bool, count: int) -> list[Example]:
    """Rows of one length whose second half is scored."""
    drawn, length = random.Random(0), 48 if tiny else LENGTH
    vocabulary = TINY_VOCABULARY if tiny else VOCABULARY
    return [
        Example(
            str(number),
            tuple(drawn.randrange(1, vocabulary) for _ in range(length)),
            tuple(place >= length // 2 for place in range(length)),
        )
        for number in range(count)
    ]


def products(student: Any, teacher: Any | None, tokens: int, scored: int) -> float:
    """Operations of a step's linear layers: three products of a trained layer, one of the teacher's."""
    total = 0.0
    for one, times in ((student, 3), (teacher, 1)):
        if one is None:
            continue
        head = one.get_output_embeddings()
        for layer in one.modules():
            if isinstance(layer, torch.nn.Linear):
                total += 2.0 * times * layer.weight.numel() * (scored if layer is head else tokens)
    return total


# ── a step ────────────────────────────────────────────────────────────────────────────────────────


class Pair:
    """A student in fp32 that computes in bf16, its teacher in bf16, and the batch of a step."""

    def __init__(self, clock: Clock, tiny: bool) -> None:
        self.clock, self.tiny, self.device = clock, tiny, clock.device
        self.student = model(self.device, torch.float32, STUDENT, tiny=tiny, seed=0)
        self.teacher = model(self.device, torch.bfloat16, TEACHER, tiny=tiny, seed=1).eval()
        self.teacher.requires_grad_(False)
        self.rows = examples(tiny, BATCH)
        self.vocabulary = TINY_VOCABULARY if tiny else VOCABULARY
        self.tokens = sum(len(row.input_ids) for row in self.rows)
        self.scored = sum(sum(row.scored[1:]) for row in self.rows)

    def batches(self, rows_at_once: int = BATCH) -> list[Batch]:
        """The step in micro-batches of so many rows."""
        from potstill.data.batch import collate

        parts = [self.rows[start : start + rows_at_once] for start in range(0, BATCH, rows_at_once)]
        return [collate(part, pad_id=0) for part in parts]

    def timed(self, step: Callable[[], object], *, taught: bool = True) -> Result:
        """Tokens a second, and GB at most, of steps behind one that warms up."""
        step()
        release()
        if self.clock.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = sorted(self.clock.wall(step) for _ in range(STEPS))
        median = (seconds[(STEPS - 1) // 2] + seconds[STEPS // 2]) / 2
        peak = torch.cuda.max_memory_allocated(self.device) if self.clock.on_gpu else 0
        work = products(self.student, self.teacher if taught else None, self.tokens, self.scored)
        rate, most = work / median / 1e12, self.clock.rate
        return {
            "tokens_per_second": round(self.tokens / median, 1),
            "seconds": [round(value, 4) for value in seconds],
            "peak_gb": round(peak / 1e9, 2),
            "tera_operations_per_second": round(rate, 1),
            "share_of_product_rate": None if most is None else round(rate / most, 3),
        }


def ours(
    pair: Pair, taught_by: Any = None, rows_at_once: int = BATCH, chunk_bytes: int | None = None
) -> Result:
    """potstill's step: accumulate, clip, AdamW."""
    from potstill import divergences
    from potstill.divergences._divergence import Divergence
    from potstill.objectives.token import TokenLoss
    from potstill.recipe.training import Training
    from potstill.teachers.local import LocalTeacher
    from potstill.train.optimizer import make_optimizer
    from potstill.train.step import StudentModule, accumulate

    more: dict[str, Any] = {} if chunk_bytes is None else {"chunk_bytes": chunk_bytes}
    module = StudentModule(pair.student, pair.vocabulary, autocast=torch.bfloat16, **more).train()
    teacher = taught_by or LocalTeacher(pair.teacher, vocabulary=pair.vocabulary, fingerprint="random")
    loss = TokenLoss(Divergence.from_module(divergences.forward_kl))
    spec = Training(steps=1, learning_rate=1e-5)
    optimizer = make_optimizer(module, spec)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        accumulate(module, teacher, pair.batches(rows_at_once), loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), spec.max_grad_norm or math.inf)
        optimizer.step()

    return pair.timed(step, taught=taught_by is None)


def plain(pair: Pair) -> Result:
    """The loop of a tutorial: logits of all positions, `F.kl_div` on the scored ones, fused AdamW."""
    import torch.nn.functional as F

    student, teacher = pair.student.train(), pair.teacher
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=pair.clock.on_gpu)
    ids = torch.tensor([row.input_ids for row in pair.rows], device=pair.device)
    scored = torch.tensor([(*row.scored[1:], False) for row in pair.rows], device=pair.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            target = F.log_softmax(teacher(input_ids=ids, use_cache=False).logits[scored].float(), -1)
        with torch.autocast(pair.device.type, torch.bfloat16):
            logits = student(input_ids=ids, use_cache=False).logits
        input_ = F.log_softmax(logits[scored].float(), -1)
        F.kl_div(input_, target, reduction="batchmean", log_target=True).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    return pair.timed(step)


def trl_gkd(pair: Pair) -> Result:
    """TRL's GKD trainer with its own collator and no generation (lmbda 0), as `step.py` runs it on a CPU."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    half = len(pair.rows[0].input_ids) // 2 - 1
    chats = [
        [{"role": role, "content": " ".join(["a"] * half)} for role in ("user", "assistant")]
        for _ in range(BATCH * (STEPS + 1))
    ]
    marks: list[float] = []

    class InTime(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            pair.clock.wait()
            marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            pair.clock.wait()
            marks.append(time.perf_counter())
            if len(marks) == 2 and pair.clock.on_gpu:
                torch.cuda.reset_peak_memory_stats(pair.device)

    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=STEPS + 1,
            lmbda=0.0,
            beta=0.5,
            max_length=len(pair.rows[0].input_ids),
            learning_rate=1e-5,
            bf16=True,
            gradient_checkpointing=False,
            use_cpu=not pair.clock.on_gpu,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = GKDTrainer(
            pair.student,
            pair.teacher,
            args=config,
            train_dataset=Dataset.from_list([{"messages": chat} for chat in chats]),
            processing_class=_tokenizer(),
            callbacks=[InTime()],
        )
        trainer.train()
    seconds = sorted(end - begin for begin, end in zip(marks[2::2], marks[3::2], strict=True))
    peak = torch.cuda.max_memory_allocated(pair.device) if pair.clock.on_gpu else 0
    median = (seconds[(STEPS - 1) // 2] + seconds[STEPS // 2]) / 2
    return {
        "tokens_per_second": round(pair.tokens / median, 1),
        "seconds": [round(value, 4) for value in seconds],
        "peak_gb": round(peak / 1e9, 2),
        "note": "generalised JSD, beta 0.5; rows of the same length",
    }


def _tokenizer() -> Any:
    """A tokenizer of few words, with a chat template that adds a token to each message."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, "<unk>": 2, "a": 3}
    made = Tokenizer(models.WordLevel(words, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <end> {% endfor %}"
    return tokenizer


def step(clock: Clock, tiny: bool) -> Result:
    """A training step by each contender; the student's weights move between them, which changes no time."""
    pair = Pair(clock, tiny)
    clock.add("shape", {"tokens": pair.tokens, "scored": pair.scored})
    contenders: dict[str, Callable[[], Result]] = {
        "ours": partial(ours, pair),
        "plain": partial(plain, pair),
        "ours, micro-batches of 2 rows": partial(ours, pair, None, 2),
        "ours, chunks of 2 GiB": partial(ours, pair, None, BATCH, 2**31),
    }
    if installed("trl"):
        contenders["trl_gkd"] = partial(trl_gkd, pair)
    else:
        clock.add("trl_gkd", "trl is not installed")
    clock.each(contenders)
    return clock.found
