"""Well-formed replies in forms of their own, and answers of another endpoint."""

from __future__ import annotations

import pytest

from builders.asking import ask, texts
from builders.endpoint import Act, Turned, answer, error, serving
from potstill.errors import DataError, ProviderError

PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "2+2"}]},
    {"type": "text", "text": "It is "},
    {"type": "text", "text": "4"},
]


def test_content_in_parts_is_joined_and_its_thoughts_are_reasoning(tmp_path) -> None:
    with serving(answer(PARTS)) as server:
        assert texts(ask(server, tmp_path, ["a"])) == ["It is 4"]
        wrapped = texts(ask(server, tmp_path, ["a"], {"reasoning": "wrap"}))
        assert len(server.sent) == 1
    assert wrapped == ["<think>\n2+2\n</think>\n\nIt is 4"]


@pytest.mark.parametrize("act", [answer([{"type": "image"}]), answer(7), answer("half", "error")])
def test_a_whole_reply_that_cannot_be_used_is_bought_at_most_twice(tmp_path, act) -> None:
    with serving(act) as server:
        with pytest.raises(ProviderError, match="a reply that cannot be read"):
            ask(server, tmp_path, ["a"])
        assert len(server.sent) == 2


def test_an_answer_that_ended_by_an_error_is_asked_for_again(tmp_path) -> None:
    with serving(lambda sent, times: answer() if times else answer("half", "error")) as server:
        assert texts(ask(server, tmp_path, ["a"])) == ["fine"]


def test_a_reply_that_is_cut_off_in_its_middle_is_tried_as_often_as_a_failure(tmp_path) -> None:
    with serving(lambda sent, times: Act(body=b'{"cho') if times < 4 else answer()) as server:
        assert texts(ask(server, tmp_path, ["a"])) == ["fine"]


def test_an_endpoint_that_asks_for_no_wait_and_goes_on_refusing_is_left_alone_longer(tmp_path) -> None:
    clock = Turned()
    with serving(error(429, retry_after="0")) as server:
        with pytest.raises(ProviderError, match="has refused everything for"):
            ask(server, tmp_path, ["a"], {"patience": 600.0}, clock=clock)
        assert len(server.sent) < 40


def test_a_response_format_of_text_demands_no_json(tmp_path) -> None:
    body = {"response_format": {"type": "text"}}
    with serving() as server:
        (given,) = ask(server, tmp_path, ["a"], teacher={"extra_body": body})
    assert given.reason == ""


# field case 41
@pytest.mark.parametrize(
    ("thought", "kept"),
    [("half \ud83d", "half a character"), ("a \x00 b", "a character that stands for none")],
)
def test_reasoning_is_looked_at_where_it_is_trained_on_and_only_there(tmp_path, thought, kept) -> None:
    with serving(answer("fine", reasoning_content=thought)) as server:
        (dropped,) = ask(server, tmp_path, ["a"])
        (wrapped,) = ask(server, tmp_path, ["a"], {"reasoning": "wrap"})
    assert dropped.reason == ""
    assert wrapped.reason.startswith(kept)


def test_answers_of_another_endpoint_are_named_where_nothing_is_missing(tmp_path) -> None:
    warned: list[str] = []
    with serving() as one, serving() as other:
        ask(one, tmp_path, ["a", "b"])
        given = ask(other, tmp_path, ["a", "b"], warn=warned.append)
        assert other.sent == []
    assert {answer.endpoint for answer in given} == {one.url}
    assert "2 of the answers in the journal were given" in warned[0]


def test_where_most_of_the_first_answers_would_not_be_trained_on_the_rest_is_not_bought(tmp_path) -> None:
    def judge(prompt: str, text: str, finish: str) -> str:
        assert prompt.startswith("prompt")
        return "cut off at the limit of tokens" if finish == "length" else ""

    with serving(answer("half", "length")) as server:
        with pytest.raises(
            DataError, match="16 of the first 16 answers cannot be used: 16 cut off"
        ) as raised:
            ask(server, tmp_path, [f"prompt {n}" for n in range(40)], judge=judge)
        assert len(server.sent) == 16
    assert "generate.filters=[{truncated: {action: count}}]" in raised.value.fix
