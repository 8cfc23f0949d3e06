"""What a capture of likeliest ids adds to the teacher's body and head, and how fast replies of engines are read.

`capture_topk_vs_body_and_head` is the processor time of writing `topk` (8 bits, p > 0.001, at most 128 ids), forward
passes included, over that of the same passes and the logits of the scored positions alone; on the same batches, in
turning order. `reply_positions_per_second` is how many positions with 20 ids each are read of an engine's replies,
their JSON included, by the slower of both forms.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pair import pair, product_dtype, rows
from protocol import Figure, Report, clock, interleave, spread

ROWS, TOKENS, ROUNDS = 16, 2048, 4
CHUNK = 256  # positions whose logits are in memory
KIND, BAR = "topk", 1.25
POSITIONS, IDS, TIMES = 2048, 20, 5  # of a reply, and how often it is read


def topk(report: Report, shape: Any, *, quick: bool = False) -> None:
    """The figure of captures; under two minutes on one thread."""
    from potstill.cache.codecs import codec
    from potstill.cache.header import Header
    from potstill.console import Console
    from potstill.data.batch import collate
    from potstill.models import anatomy, vocabulary
    from potstill.models.projection import plain_logits
    from potstill.stages._entries import Entries
    from potstill.stages._plan import each_once, plan_of
    from potstill.stages._writing import Writing
    from potstill.teachers.local import LocalTeacher

    loaded, _ = pair(product_dtype())
    size, pad_id = vocabulary.read_vocabulary(loaded.tokenizer).size, loaded.tokenizer.pad_token_id
    examples = [example for _, example in rows(loaded.tokenizer, ROWS // 2 if quick else ROWS)]
    teacher = LocalTeacher(loaded.model, vocabulary=size, fingerprint="benchmark")
    plan = plan_of(each_once(examples), batch_tokens=TOKENS, bytes_per_token=300.0, part_bytes=2**27)
    job: Any = SimpleNamespace(
        context=SimpleNamespace(console=Console(quiet=True), stop_signal=lambda: 0),
        spec=SimpleNamespace(name="benchmark"),
        teacher=teacher,
        entries=Entries(teacher, torch.device("cpu"), pad_id),
    )
    header = Header(KIND, codec(KIND).check({}), "benchmark", size)
    head = anatomy.head_of(loaded.model, size)
    batches = [batch for part in plan.parts for block in part for batch in block.batches]

    def body_and_head() -> None:
        for batch in batches:
            read = collate(batch, pad_id=pad_id)
            for part in anatomy.states_of(loaded.model, read)[read.predicts].split(CHUNK):
                plain_logits(head, part)

    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        number = itertools.count()

        def capture() -> None:
            Writing(job, Path(place) / str(next(number)), header, plan, 300.0).go((0, 1), None)

        timings = interleave({"capture": capture, "body_and_head": body_and_head}, 2 if quick else ROUNDS)
    ratios = spread(timings.ratios("capture", "body_and_head"))
    contenders = {name: timings.seconds(name) for name in ("capture", "body_and_head")}
    note = f"{len(timings.rounds)} rounds, {ratios['min']:g} to {ratios['max']:g}"
    if timings.noisy:
        note += "; other work took the processor in every round"
    report.add(
        Figure(
            "capture_topk_vs_body_and_head", ratios["median"], "ratio", BAR, "lower", contenders, shape, note
        )
    )


def replies(report: Report) -> None:
    """The figure of replies."""
    from potstill.teachers._engines import ENGINES

    ids = [(7 * place) % 32000 for place in range(POSITIONS)]
    texts = {"vllm": _vllm(ids), "sglang": _sglang(ids)}
    speed = {}
    for name, text in texts.items():

        def read(engine: Any = ENGINES[name], text: str = text) -> None:
            engine.said(json.loads(text), ids)

        speed[name] = round(POSITIONS / min(clock(read).cpu for _ in range(TIMES)))
    slower = min(speed.values())
    shape = {"positions": POSITIONS, "ids": IDS}
    report.add(Figure("reply_positions_per_second", slower, "1/s", None, "higher", speed, shape))


def _likeliest(token: int) -> list[tuple[int, float]]:
    """The given token, and others from likely to unlikely."""
    return [((token + place) % 32000, -1.0 - 0.5 * place) for place in range(IDS)]


def _vllm(ids: list[int]) -> str:
    positions = [
        {
            str(token): {"logprob": lp, "rank": rank, "decoded_token": " word"}
            for rank, (token, lp) in enumerate(_likeliest(each), 1)
        }
        for each in ids[1:]
    ]
    choice = {"prompt_logprobs": [None, *positions], "logprobs": {"tokens": ["token_id:5"]}}
    return json.dumps({"choices": [choice]})


def _sglang(ids: list[int]) -> str:
    given = [[None, ids[0], None], *([-1.0, token, None] for token in ids[1:])]
    top = [None, *([[lp, token, None] for token, lp in _likeliest(each)] for each in ids[1:])]
    return json.dumps({"meta_info": {"input_token_logprobs": given, "input_top_logprobs": top}})
