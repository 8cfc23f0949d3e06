"""A row's text depends on its prompt, the settings and the seed: on nothing else."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders.hooks import raised, watched
from builders.tiny import EOS as STOP
from builders.tiny import KINDS, PAD, tiny_model
from potstill.errors import DataError, ModelError, RecipeError
from potstill.generate import decode, local
from potstill.generate.local import generate
from potstill.generate.request import Completion, GenerationProgress, Request
from potstill.generate.sampling import Sampling

GREEDY = Sampling(12, temperature=0)
VOCABULARY = 64


def build(kind: str, **changes: Any) -> Any:
    """A model of which some rows stop and others do not."""
    return tiny_model(vocab=VOCABULARY, kind=kind, seed=16, num_attention_heads=4, **changes)


def prompts(count: int = 12) -> list[list[int]]:
    """Prompts of 1 to 9 ids; some hold the padding and the stop id."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(VOCABULARY, (1 + (7 * place) % 9,), generator=generator).tolist()
        for place in range(count)
    ]


def write(
    model: Any, rows: Sequence[Sequence[int]], sampling: Sampling = GREEDY, **changes: Any
) -> dict[tuple[int, int], Completion]:
    settings: dict[str, Any] = {"stop_ids": {STOP}, "pad_id": PAD, "seed": 0, "batch_rows": 4} | changes
    finished = list(generate(model, rows, sampling, **settings))
    found = {(row.index, row.sample): row for row in finished}
    assert len(found) == len(finished)
    return found


def without_cache(
    model: Any, prompt: Sequence[int], count: int, stop_ids: Collection[int]
) -> tuple[int, ...]:
    """Greedy text by a full forward pass for every id."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + count:
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in stop_ids:
                break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("kind", KINDS)
def test_cache_padding_and_refilled_places_do_not_change_greedy_text(kind: str) -> None:
    model, rows, stop_ids = build(kind), prompts(), range(8)
    found = write(model, rows, stop_ids=stop_ids)
    assert {row.index: row.ids for row in found.values()} == {
        index: without_cache(model, prompt, 12, stop_ids) for index, prompt in enumerate(rows)
    }
    lengths = {len(row.ids) for row in found.values()}
    assert len(lengths) > 1, "rows that all end together prove nothing about refilling"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(12, 0.8, top_p=0.9, top_k=20)], ids=str)
def test_text_does_not_depend_on_the_batch_size(kind: str, sampling: Sampling) -> None:
    model, rows = build(kind), prompts(8)
    alone = write(model, rows, sampling, batch_rows=1, samples=2)
    for batch_rows in (3, 16):
        assert write(model, rows, sampling, batch_rows=batch_rows, samples=2) == alone


def test_left_padding_moves_no_logit_of_a_model_with_absolute_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.Tensor] = []
    original = decode.choose

    def spy(logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
        seen.append(logits)
        return original(logits, uniform, sampling)

    monkeypatch.setattr(decode, "choose", spy)
    model, one, three = build("gpt2"), Sampling(1), [9, 8, 7]
    write(model, [[5, 6, 7, 8]], one)
    write(model, [[*three, 5, 6, 7, 8], [5, 6, 7, 8]], one)
    alone, padded = seen[0][0], seen[1][1]
    assert (alone - padded).abs().max() <= 1e-4


def test_a_stop_token_that_wins_at_once_gives_one_token_and_is_counted() -> None:
    """Field case 43."""
    model, rows = build("llama"), prompts()
    seen: list[GenerationProgress] = []
    with raised(model, STOP, 50.0), watched(model) as passes:
        found = write(model, rows, Sampling(16), on_progress=seen.append)
    assert all(row.ids == (STOP,) and row.finish == "stop" for row in found.values())
    assert len(found) == len(rows)
    assert (seen[-1].done, seen[-1].total, seen[-1].tokens) == (len(rows), len(rows), len(rows))
    assert len(passes) == len(rows) // 4


def test_a_row_that_never_stops_ends_at_the_limit() -> None:
    model = build("llama")
    with raised(model, STOP, -50.0):
        found = write(model, prompts(), Sampling(16))
    assert all(len(row.ids) == 16 and row.finish == "length" for row in found.values())


def test_a_stop_token_in_the_last_place_counts_as_a_stop() -> None:
    model, rows = build("llama"), prompts()
    index, length = next(
        (key[0], len(row.ids)) for key, row in write(model, rows).items() if row.finish == "stop"
    )
    found = write(model, rows, Sampling(length, temperature=0))
    assert found[index, 0].finish == "stop"


def test_completions_leave_the_prompt_out_and_keep_the_stop_token() -> None:
    rows = prompts()
    found = write(build("llama"), rows).values()
    assert {row.finish for row in found} == {"stop", "length"}
    for row in found:
        assert 1 <= len(row.ids) <= GREEDY.max_new_tokens
        assert STOP not in row.ids[:-1]
        assert (row.ids[-1] == STOP) == (row.finish == "stop")


@pytest.mark.parametrize(
    ("kind", "dropout"),
    [("llama", ["attention_dropout"]), ("gpt2", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])],
)
def test_training_mode_dropout_and_checkpointing_do_not_leak_into_text(kind: str, dropout: list[str]) -> None:
    """Field case 46."""
    rows = prompts()
    fresh = write(build(kind), rows)
    model = build(kind, **dict.fromkeys(dropout, 0.5))
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    model.train()
    # A part that the caller froze must come back frozen.
    model.get_output_embeddings().eval()
    before = {name: module.training for name, module in model.named_modules()}
    settings: dict[str, Any] = {"stop_ids": {STOP}, "pad_id": PAD, "seed": 0, "batch_rows": 4}
    found = {}
    for row in generate(model, rows, GREEDY, **settings):
        found[row.index, row.sample] = row
        assert {name: module.training for name, module in model.named_modules()} == before
        assert torch.is_grad_enabled()
    assert found == fresh
    assert model.config.use_cache is False
    assert model.is_gradient_checkpointing
    ids = torch.tensor([[5, 6, 7]])
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_mode_comes_back_after_an_error_and_when_the_caller_leaves_early() -> None:
    model = build("llama").train()
    next(iter(generate(model, prompts(), GREEDY, stop_ids={STOP}, pad_id=PAD, seed=0, batch_rows=4)))
    assert model.training
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(ModelError, match="not finite at token 0 after prompt") as caught:
        write(model, prompts())
    assert caught.value.fix
    assert model.training


def test_the_models_own_generation_settings_have_no_effect() -> None:
    plain = write(build("llama"), prompts(), Sampling(12))
    model = build("llama")
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.top_k = True, 0.01, 1
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.min_new_tokens = 9.0, 1, 12
    settings.suppress_tokens, settings.max_length, settings.eos_token_id = [3, 4, 5], 2, 9
    assert write(model, prompts(), Sampling(12)) == plain


def test_padded_rows_of_the_head_are_never_drawn() -> None:
    model = build("llama")
    with raised(model, VOCABULARY - 1, 50.0):
        assert any(VOCABULARY - 1 in row.ids for row in write(model, prompts()).values())
        for sampling in (GREEDY, Sampling(12), Sampling(12, top_k=3, top_p=0.5)):
            found = write(model, prompts(), sampling, vocabulary=VOCABULARY - 1)
            assert max(max(row.ids) for row in found.values()) < VOCABULARY - 1


def test_ids_without_a_token_are_never_written() -> None:
    model = build("llama")
    with raised(model, 40, 50.0):
        assert any(40 in row.ids for row in write(model, prompts()).values())
        for sampling in (GREEDY, Sampling(12), Sampling(12, top_k=3, top_p=0.5)):
            found = write(model, prompts(), sampling, unused=(40, 41))
            assert not {40, 41} & {index for row in found.values() for index in row.ids}


def test_first_tokens_follow_the_models_distribution() -> None:
    model, prompt, count = build("llama"), [5, 6, 7], 4000
    found = write(model, [prompt], Sampling(1, temperature=2.0), samples=count, batch_rows=count)
    observed = torch.bincount(
        torch.tensor([row.ids[0] for row in found.values()]), minlength=VOCABULARY
    ).double()
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1].double() / 2).softmax(-1) * count
    cells = expected >= 5
    statistic = ((observed - expected) ** 2 / expected)[cells].sum()
    assert statistic < cells.sum() + 5 * (2 * cells.sum()).sqrt()


def test_each_step_of_a_row_draws_anew() -> None:
    model = build("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    for row in write(model, prompts(), Sampling(12), stop_ids=()).values():
        assert len(set(row.ids)) > 6


def test_samples_of_a_prompt_differ_and_a_seed_brings_them_back() -> None:
    model, rows = build("llama"), prompts(4)
    found = write(model, rows, Sampling(12), samples=3)
    for index in range(4):
        assert len({found[index, sample].ids for sample in range(3)}) == 3
    assert write(model, rows, Sampling(12), samples=3) == found
    assert write(model, rows, Sampling(12), samples=3, seed=1) != found


def test_samples_of_a_prompt_share_its_first_pass() -> None:
    model = build("llama")
    with watched(model) as passes:
        write(model, prompts(2), Sampling(12), samples=4, batch_rows=8)
    assert passes[0] == (2, len(prompts(2)[1]))
    assert passes[1][0] > 2


def test_the_engine_writes_what_a_request_describes() -> None:
    model, rows = build("llama"), prompts()
    skip = {(0, 0), (3, 1)}
    seen: list[GenerationProgress] = []
    request = Request(
        teacher=SimpleNamespace(loaded=lambda: SimpleNamespace(model=model)),
        prompts=rows,
        sampling=Sampling(12),
        stop_ids=(STOP,),
        pad_id=PAD,
        seed=3,
        batch_rows=4,
        vocabulary=VOCABULARY - 8,
        unused=(9,),
        samples=2,
        skip=skip,
        on_progress=seen.append,
    )
    written = {(row.index, row.sample): row for row in local.write(request)}
    assert written == write(
        model,
        rows,
        Sampling(12),
        seed=3,
        batch_rows=4,
        vocabulary=VOCABULARY - 8,
        unused=(9,),
        samples=2,
        skip=skip,
    )
    assert seen[-1].done == seen[-1].total == len(written)


def test_rows_that_exist_already_are_left_out_and_the_others_stay_the_same() -> None:
    model, rows = build("llama"), prompts()
    full = write(model, rows, Sampling(12), samples=2)
    skip = {(0, 0), (3, 1), (5, 0), (5, 1)}
    rest = write(model, rows, Sampling(12), samples=2, skip=skip)
    assert rest == {key: row for key, row in full.items() if key not in skip}


def test_finished_rows_leave_the_batch_and_their_places_are_filled() -> None:
    model = build("llama")
    rows = [[7, *prompt] for prompt in prompts(32)]
    with watched(model) as passes:
        found = write(model, rows, Sampling(12), batch_rows=8)
    tokens = sum(len(row.ids) for row in found.values())
    assert sum(batch for batch, _ in passes) == tokens, "a pass over a finished row is a waste"
    last_admission = max(place for place, (_, width) in enumerate(passes) if width > 1)
    while_rows_wait = [batch for batch, width in passes[:last_admission] if width == 1]
    assert set(while_rows_wait) == {7, 8}
    assert max(batch for batch, _ in passes) == 8


def test_the_context_does_not_grow_with_the_length_of_the_queue() -> None:
    model, rows = build("llama"), prompts(24)
    widths: list[int] = []

    def note(module: Any, inputs: Any, keywords: dict[str, Any]) -> None:
        widths.append(keywords["attention_mask"].shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    write(model, rows, Sampling(12), batch_rows=4)
    handle.remove()
    # A place between two refills may carry the padding of a longer row that has just left.
    assert max(widths) <= max(map(len, rows)) + 2 * 12


def test_a_request_to_stop_yields_finished_rows_only() -> None:
    model, rows = build("llama"), prompts()
    with watched(model) as passes:
        full = write(model, rows, Sampling(12))
    needed = len(passes)
    for allowed in range(0, needed + 3, 3):
        asked = 0

        def stop(limit: int = allowed) -> bool:
            nonlocal asked
            asked += 1
            return asked > limit

        with watched(model) as passes:
            part = write(model, rows, Sampling(12), should_stop=stop)
        assert len(passes) == min(allowed, needed)
        assert (len(part) == len(full)) == (allowed >= needed)
        assert part.items() <= full.items()


def test_progress_counts_rows_and_tokens_and_never_falls() -> None:
    seen: list[GenerationProgress] = []
    with watched(model := build("llama")) as passes:
        found = write(model, prompts(), Sampling(12), on_progress=seen.append)
    assert len(seen) == len(passes)
    for name in ("done", "tokens", "seconds"):
        values = [getattr(progress, name) for progress in seen]
        assert values == sorted(values)
    assert seen[-1].done == seen[-1].total == len(found)
    assert seen[-1].tokens == sum(len(row.ids) for row in found.values())


def test_no_prompts_give_no_completions() -> None:
    assert write(build("llama"), []) == {}


@pytest.mark.parametrize(
    ("rows", "changes", "error", "named"),
    [
        ([[1, 2], []], {}, DataError, "Prompt 1"),
        ([[1]], {"batch_rows": 0}, RecipeError, "batch_rows"),
        ([[1]], {"samples": 0}, RecipeError, "samples"),
        ([[1], [5] * 250], {}, RecipeError, "256"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_the_first_pass(
    rows: list[list[int]], changes: dict[str, Any], error: type[Exception], named: str
) -> None:
    settings: dict[str, Any] = {"stop_ids": {STOP}, "pad_id": PAD, "seed": 0, "batch_rows": 4} | changes
    with pytest.raises(error, match=named) as caught:
        generate(build("llama"), rows, GREEDY, **settings)
    assert caught.value.fix  # type: ignore[attr-defined]
