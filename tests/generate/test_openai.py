"""The engine of served teachers against a server on loopback: what is asked, what is no answer, and what is taken again."""

from __future__ import annotations

import json

import pytest

from builders.asking import PROMPTS, ask, request, texts
from builders.endpoint import Act, answer, error, serving
from potstill.errors import DataError, RecipeError
from potstill.generate import openai
from potstill.recipe import plugins


def test_every_prompt_is_asked_once_and_answered_in_its_place(tmp_path) -> None:
    with serving() as server:
        given = ask(server, tmp_path, PROMPTS)
        assert texts(given) == [f"so {prompt}" for prompt in PROMPTS]
        assert set(server.prompts.values()) == {1}
        body = server.sent[0].body
        assert body["model"] == "big"
        # Explicit, so that no default of the server has a say.
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 1.0, 20)
        assert "n" not in body


def test_what_is_answered_is_never_asked_again(tmp_path) -> None:
    with serving() as server:
        first = ask(server, tmp_path, PROMPTS)
        assert ask(server, tmp_path, PROMPTS) == first
        assert texts(ask(server, tmp_path, [*PROMPTS, "new"]))[-1] == "so new"
        assert len(server.sent) == 13


def test_other_rules_are_applied_to_stored_replies_without_a_request(tmp_path) -> None:
    """The raw replies are read again; the server may be gone."""
    with serving(answer("It is 4.")) as server:
        assert ask(server, tmp_path, ["a"])[0].reason == ""
        url = server.url
    (given,) = ask(url, tmp_path, ["a"], {"reasoning": "wrap"})
    assert given.reason == "no reasoning beside it"


@pytest.mark.parametrize("option", ["truncated", "refusals", "loops"])
def test_an_option_that_moved_says_where_it_is_now(option) -> None:
    (problem,) = plugins.check_options("generate", "openai", {option: "keep"}, "generate.engine")
    assert problem.path == f"generate.engine.openai.{option}"
    assert f"Write generate.filters: [{{{option}: {{action: " in problem.fix


# W-14, W-15, W-23
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (answer(""), "empty answer"),
        (answer(None), "empty answer"),
        (answer("  \n"), "empty answer"),
        (answer("", "length", usage={"prompt_tokens": 1, "completion_tokens": 20,
                                     "completion_tokens_details": {"reasoning_tokens": 20}}), "reasoning used up"),
        (answer("", "stop", reasoning_content="Let me see"), "reasoning used up its tokens"),
        (answer(None, "content_filter"), "content filter"),
        (answer('{"citations": []}', "content_filter"), "content filter"),
        (answer(None, refusal="I will not"), "refusal"),
        (answer(None, "tool_calls", tool_calls=[{"id": "1"}]), "a tool call"),
        (answer("text", None), "does not say how it ended"),
        (answer("text", "odd"), "ended by odd"),
        (answer("text", "RECITATION"), "content filter"),
        (answer("a \ud83d b"), "half a character"),
        (answer("a \x00 b"), "NUL"),
        (error(400, "context_length_exceeded"), "longer than the teacher's context"),
        (error(400, "content_filter"), "content filter"),
        (error(400, "", "odd prompt"), "refused by the server"),
        (error(413), "refused by the server"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_rejected_with_its_reason_and_not_tried_again(tmp_path, act, reason) -> None:
    with serving(lambda sent, times: act if sent.prompt == "odd" else answer("fine")) as server:
        given = ask(server, tmp_path, ["odd", "even"], {"missing": "skip"})
        assert reason in given[0].reason
        assert (given[1].reason, given[1].text) == ("", "fine")
        assert server.prompts == {"odd": 1, "even": 1}


@pytest.mark.parametrize("finish", ["stop", "eos_token", "end_turn"])
def test_an_end_is_an_end_however_the_server_calls_it(tmp_path, finish) -> None:
    with serving(answer("fine", finish)) as server:
        (given,) = ask(server, tmp_path, ["a"])
    assert (given.finish, given.reason) == ("stop", "")


# W-23
@pytest.mark.parametrize(
    "text",
    ["\u2028 two \u2029 lines", "</script><b>", "long " * 200_000, "e\u0301 \U0001f9ea 漢字", "a\tb\nc"],
)
def test_a_text_comes_back_as_it_was_given(tmp_path, text) -> None:
    with serving(answer(text)) as server:
        (given,) = ask(server, tmp_path, ["a"])
    assert (given.text, given.reason) == (text, "")


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"teacher": {"model": "other"}},
        {"teacher": {"extra_body": {"response_format": {"type": "text"}}}},
        {"teacher": {"omit": ("top_p",)}},
    ],
)
def test_an_answer_belongs_to_its_model_and_its_request(tmp_path, change) -> None:
    with serving(answer('"fine"')) as server:
        ask(server, tmp_path, ["a"])
        ask(server, tmp_path, ["a"], **change)
        assert len(server.sent) == 2


def test_answers_of_another_endpoint_are_used_and_named(tmp_path) -> None:
    warned: list[str] = []
    with serving() as one, serving() as other:
        ask(one, tmp_path, ["a"])
        ask(other, tmp_path, ["a", "b"], warn=warned.append)
        assert other.prompts == {"b": 1}
    assert len(warned) == 1
    assert "1 of the answers in the journal were given" in warned[0]


# W-16, W-21
def test_each_sample_is_a_request_of_its_own_and_equal_ones_are_left_to_the_filters(tmp_path) -> None:
    with serving(answer("the same")) as server:
        given = ask(server, tmp_path, ["a"], samples=3)
        assert len(server.sent) == 3
    assert [(one.text, one.reason) for one in given] == [("the same", "")] * 3


# field case 41
def test_reasoning_in_its_own_field_is_dropped_or_wrapped_as_the_recipe_says(tmp_path) -> None:
    def script(sent, times):
        return answer("4", reasoning_content="2+2") if sent.prompt == "a" else answer("5")

    with serving(script) as server:
        assert texts(ask(server, tmp_path, ["a", "b"])) == ["4", "5"]
        given = ask(server, tmp_path, ["a", "b"], {"reasoning": "wrap"})
        assert len(server.sent) == 2
    assert given[0].text == "<think>\n2+2\n</think>\n\n4"
    assert given[1].reason == "no reasoning beside it"


def test_completions_sends_the_text_of_one_turn(tmp_path) -> None:
    body = {
        "choices": [{"text": " there", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    with serving(Act(body=json.dumps(body).encode())) as server:
        assert texts(ask(server, tmp_path, ["Hello"], teacher={"api": "completions"})) == [" there"]
        assert server.sent[0].path == "/v1/completions"
        assert server.sent[0].body["prompt"] == "Hello"


def test_completions_refuses_a_conversation(tmp_path) -> None:
    from potstill.generate.served import Asked

    turns = ({"role": "system", "content": "x"}, {"role": "user", "content": "y"})
    made = request(
        "http://127.0.0.1:9/v1", tmp_path, [], teacher={"api": "completions"}, asked=[Asked(turns, 3, (0,))]
    )
    with pytest.raises(DataError, match="2 turns"):
        list(openai.write(made))


@pytest.mark.parametrize(
    "option", ["attempts", "timeout", "requests_per_minute", "tokens_per_minute", "patience"]
)
def test_a_pace_of_nothing_is_refused(tmp_path, option) -> None:
    with pytest.raises(RecipeError, match=rf"openai\.{option}: cannot be 0"):
        [*openai.write(request("http://127.0.0.1:9/v1", tmp_path, ["a"]), **{option: 0})]
