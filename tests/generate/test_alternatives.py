"""Alternatives beside a served teacher's tokens: a signal where ids are proven, text where they are not."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from typing import Any

import pytest
import torch

from builders import alternatives as made
from builders.asking import ask, texts
from builders.chats import bytes_tokenizer
from builders.endpoint import serving
from builders.tiny import tiny_tokenizer
from potstill.errors import RecipeError
from potstill.generate.alternatives import Proven, Prover, Uncertain, read
from potstill.loss import DistillationLoss
from potstill.models.token_bytes import token_bytes
from potstill.signals.topk import TopK
from potstill.stages._alternatives import hard_labels

TEXT = "the answer"
READER = made.reader()
IDS = tuple(READER.templater.text_ids(TEXT))
ROWS = made.rows_of(IDS)


def prove(stated: Any, text: str = TEXT, reader: Any = READER, **choice: Any) -> Proven:
    return Prover(reader).prove(read(made.body(text, stated, **choice)), text)


def why(stated: Any, text: str = TEXT, reader: Any = READER, **choice: Any) -> str:
    with pytest.raises(Uncertain) as refused:
        prove(stated, text, reader, **choice)
    return str(refused.value)


def test_every_token_of_a_byte_level_vocabulary_has_its_bytes() -> None:
    known = token_bytes(READER.tokenizer)
    assert known.keys() == READER.vocabulary.tokens.keys()
    for text in (TEXT, "né 🜂 \n"):
        assert b"".join(known[i] for i in READER.templater.text_ids(text)) == text.encode()
    assert token_bytes(tiny_tokenizer()) == {}  # words that a decoder joins by spaces


def test_bytes_that_map_one_to_one_onto_the_tokenizer_are_ids() -> None:
    proven = prove(made.by_string(READER, ROWS))
    assert proven.ids == IDS
    assert proven.signal.ids[0].tolist()[:3] == [IDS[0], 300, 301]
    assert torch.allclose(proven.signal.lp[0, :3].exp(), torch.tensor([0.7, 0.15, 0.075]))


@pytest.mark.parametrize(
    ("stated", "more"),
    [
        (made.by_id(ROWS), {}),
        (made.by_string(READER, ROWS), {"token_ids": list(IDS)}),
    ],
    ids=["token_id: names", "token_ids beside strings"],
)
def test_ids_that_the_server_returns_give_the_same_signal_as_bytes(stated: Any, more: Any) -> None:
    proven, other = prove(stated, **more), prove(made.by_string(READER, ROWS))
    assert proven.ids == other.ids == IDS
    assert torch.equal(proven.signal.ids, other.signal.ids)
    assert torch.equal(proven.signal.lp, other.signal.lp)


def test_ids_serve_where_the_tokenizer_has_no_bytes_and_the_older_form_of_completions_too() -> None:
    words = made.reader(tiny_tokenizer())
    ids = words.templater.text_ids("w20 w21")
    rows = made.rows_of(ids, others=(30, 31))
    assert prove(made.by_id(rows), "w20 w21", words).ids == tuple(ids)
    older = {
        "tokens": [f"token_id:{i}" for i in ids],
        "token_logprobs": [math.log(0.7)] * 2,
        "top_logprobs": [{f"token_id:{i}": math.log(p) for i, p in row.items()} for row in rows],
    }
    assert prove(older, "w20 w21", words).ids == tuple(ids)


def test_a_drawn_token_outside_the_alternatives_joins_them_with_its_own_number() -> None:
    stated = made.by_string(READER, ROWS)
    first = stated["content"][0]
    first["top_logprobs"] = first["top_logprobs"][
        1:
    ]  # vLLM: k alternatives, and the drawn one where it is none
    first["logprob"] = math.log(0.05)
    signal = prove(stated).signal
    assert signal.ids[0, :3].tolist() == [300, 301, IDS[0]]
    assert signal.lp[0, 2].exp() == pytest.approx(0.05)


def test_an_end_token_is_kept_with_its_alternatives() -> None:
    end = READER.stop_ids[0]
    proven = prove(made.by_id([*ROWS, {end: 0.6, 300: 0.2}]))
    assert proven.ids == (*IDS, end)
    assert Prover(READER).own(proven.ids) == IDS


@pytest.mark.parametrize("absent", [-9999.0, -math.inf, None, -1000.0])
def test_what_stands_for_no_probability_is_absent_and_its_mass_is_the_rests(absent: Any) -> None:
    stated = made.by_string(READER, ROWS)
    for one in stated["content"]:
        one["top_logprobs"][2]["logprob"] = absent
    signal = prove(stated).signal
    assert 301 not in signal.ids
    assert torch.allclose(signal.lp.exp().sum(-1), torch.tensor(0.85))


def edited(change: Any) -> dict[str, Any]:
    stated = copy.deepcopy(made.by_string(READER, ROWS))
    change(stated["content"])
    return stated


def set_at(key: str, value: Any, at: int = 0) -> Any:
    return lambda content: content[at]["top_logprobs"][1].update({key: value})


def shifted(content: Any) -> None:
    """Each position states the alternatives of the next one."""
    tops = [one["top_logprobs"] for one in content]
    for one, top in zip(content, [*tops[1:], tops[0]], strict=True):
        one["top_logprobs"] = top


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        (None, "no log-probabilities came back"),
        ({"content": None}, "no log-probabilities came back"),
        ({"content": []}, "no log-probabilities came back"),
        ({"content": ["the"]}, "of an unknown form"),
        (edited(lambda content: content.pop()), "spell another text"),
        (edited(lambda content: content[0].update(top_logprobs=[])), "a token without alternatives"),
        (edited(set_at("logprob", math.nan)), "a log-probability that is none"),
        (edited(set_at("logprob", 0.5)), "a log-probability that is none"),
        (edited(set_at("logprob", "low")), "a log-probability that is none"),
        (edited(set_at("logprob", -0.2)), "more mass than 1"),
        (edited(set_at("logprob", 10**400)), "of an unknown form"),
        (edited(set_at("bytes", 10**15)), "of an unknown form"),  # as many zeros would not fit anywhere
        (edited(set_at("bytes", None)), "strings without their bytes"),
        (edited(set_at("bytes", list(b"\xef\xbf\xbd"))), "half a character"),
        (edited(set_at("token", "\ufffd")), "half a character"),
        (edited(set_at("bytes", list(b"zqj"))), "a string that no token"),
        (
            edited(lambda content: content[0]["top_logprobs"].append(content[0]["top_logprobs"][1])),
            "two alternatives are one token",
        ),
        (edited(set_at("id", READER.vocabulary.size)), "an id that the tokenizer does not have"),
        (edited(set_at("id", -1)), "an id that the tokenizer does not have"),
        (edited(set_at("id", 299)), "another token than its bytes"),
        (edited(shifted), "of another place"),
    ],
)
def test_what_is_not_certain_is_refused_with_its_reason(stated: Any, reason: str) -> None:
    assert reason in why(stated)


def test_ids_that_are_off_by_one_are_refused() -> None:
    wrong = [{index + 1: p for index, p in row.items()} for row in ROWS]
    assert "spell another text" in why(made.by_id(wrong))
    assert "of other tokens" in why(made.by_id(ROWS), token_ids=[i + 1 for i in IDS])
    assert "another number of tokens" in why(made.by_id(ROWS), token_ids=[*IDS, IDS[0]])


def test_alternatives_without_their_tokens_numbers_are_refused_where_most_are_of_other_places() -> None:
    """OpenAI gives -9999 for a drawn token that is not among its alternatives: a shift shows in how many are not."""
    stated = edited(shifted)
    for one in stated["content"]:
        one["logprob"] = -9999.0
    assert "most tokens are not among their alternatives" in why(stated)


def test_two_tokens_that_print_the_same_are_refused_as_strings_and_serve_as_ids() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.add_tokens([" answer"])  # beside the piece that is written with a letter for the space
    reader = made.reader(tokenizer)
    one, two = (index for index, raw in token_bytes(tokenizer).items() if raw == b" answer")
    ids = tuple(reader.templater.text_ids("the"))
    rows = [{index: 0.6, one: 0.3, two: 0.05} for index in ids]
    assert prove(made.by_id(rows), "the", reader).ids == ids
    assert "a string that several tokens" in why(made.by_string(reader, rows), "the", reader)


def test_an_answer_that_the_tokenizer_writes_as_other_ids_is_refused() -> None:
    letters = [READER.templater.text_ids(letter)[0] for letter in TEXT]
    assert len(letters) > len(IDS)
    assert "as other ids" in why(made.by_id(made.rows_of(letters)))


def test_an_answer_that_the_tokenizer_cannot_write_is_refused() -> None:
    text = "<s><s> is no beginning"  # in letters, which the tokenizer reads as two start tokens
    letters = {raw: index for index, raw in token_bytes(READER.tokenizer).items() if len(raw) == 1}
    ids = [letters[bytes([byte])] for byte in text.encode()]
    assert "cannot write the answer" in why(made.by_id(made.rows_of(ids)), text)


def test_the_loss_with_a_tail_bucket_is_that_of_the_hand_in_float64() -> None:
    """Three tokens: two stated ids and one bucket for all others, on a vocabulary of five."""
    student = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stated = [{0: 0.6, 3: 0.3}, {1: 0.5, 4: 0.25}, {2: 0.9, 0: 0.05}]
    expected = 0.0
    for row, logits in zip(stated, student[0], strict=True):
        q = logits.softmax(-1).tolist()
        expected += sum(p * math.log(p / q[i]) for i, p in row.items())
        rest, others = 1 - sum(row.values()), 1 - sum(q[i] for i in row)
        expected += rest * math.log(rest / others)
    ids = torch.tensor([list(row) for row in stated])
    lp = torch.tensor([list(row.values()) for row in stated], dtype=torch.float64).log()
    out = DistillationLoss().from_logits(student, TopK(ids, lp), torch.ones(1, 3))
    assert float(out.sum) == pytest.approx(expected, abs=1e-12)


def test_text_alone_is_forward_kl_to_its_own_tokens_which_is_cross_entropy() -> None:
    student = torch.randn(1, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = [4, 0, 6]
    out = DistillationLoss().from_logits(student, hard_labels(targets), torch.ones(1, 3))
    expected = torch.nn.functional.cross_entropy(student[0], torch.tensor(targets), reduction="sum")
    assert float(out.sum) == pytest.approx(
        float(expected), abs=3e-5
    )  # three tails, each to the rounding of fp32


def test_an_error_names_the_field_that_a_server_cuts(tmp_path: Any) -> None:
    with serving(made.reply(TEXT, made.by_id(ROWS))) as server:
        with pytest.raises(
            RecipeError, match="20 alternatives to each token were asked for, and an answer has 3"
        ):
            ask(server, tmp_path, ["a"], alternatives=20)
        assert server.sent[0].body["logprobs"] is True
        assert server.sent[0].body["top_logprobs"] == 20
    words = "logprobs were asked for, and an answer has none"
    with serving(made.reply(TEXT, None)) as server, pytest.raises(RecipeError, match=words):
        ask(server, tmp_path, ["b"], alternatives=20)


def test_an_answer_that_the_provider_took_back_is_rejected_and_stops_nobody(tmp_path: Any) -> None:
    def filtered(sent: Any, times: int) -> Any:
        taken = sent.prompt == "b"
        stated = None if taken else made.by_id(ROWS)
        return made.reply(TEXT, stated, finish_reason="content_filter" if taken else "stop")

    with serving(filtered) as server:
        given = ask(server, tmp_path, ["a", "b"], alternatives=3)
    assert [one.reason for one in given] == ["", "content filter"]


@pytest.mark.parametrize("first", [3, 20])
def test_a_reply_that_was_to_state_more_alternatives_is_not_bought_again(tmp_path: Any, first: int) -> None:
    """Whoever lowers teacher.top_logprobs to what the server gives has paid for the first answers."""
    with serving(made.reply(TEXT, made.by_id(ROWS))) as server:
        with suppress(RecipeError):
            ask(server, tmp_path, ["a"], alternatives=first)
        assert texts(ask(server, tmp_path, ["a"], alternatives=2)) == [TEXT]
        assert len(server.sent) == 1
        ask(server, tmp_path, ["a"], {"reuse": "exact"}, alternatives=2)
        assert len(server.sent) == 2
        ask(server, tmp_path, ["c"], alternatives=2)
        ask(server, tmp_path, ["c"], alternatives=3)  # fewer do not serve
        assert len(server.sent) == 4


def test_replies_are_read_again_from_the_journal_and_serve_whoever_wants_the_text_alone(
    tmp_path: Any,
) -> None:
    kept: list[bytes] = []
    with serving(made.reply(TEXT, made.by_id(ROWS))) as server:
        first = ask(server, tmp_path, ["a"], alternatives=3, keep=lambda given, reply: kept.append(reply))
        again = ask(server, tmp_path, ["a"], alternatives=3, keep=lambda given, reply: kept.append(reply))
        alone = ask(server, tmp_path, ["a"])
        assert len(server.sent) == 1
        assert texts(first) == texts(again) == texts(alone) == [TEXT]
        ask(server, tmp_path, ["b"])
        ask(server, tmp_path, ["b"], alternatives=3)  # text alone states none
        assert len(server.sent) == 3
    assert len(kept) == 2
    assert len({Prover(READER).prove(read(reply), TEXT).ids for reply in kept}) == 1
