"""What a task adds to requests: a schema in each, and answers that the bill does not count."""

from __future__ import annotations

import pytest

from builders.asking import PRICE, ask, texts
from builders.endpoint import answer, error, serving
from potstill.errors import DataError, RecipeError
from potstill.generate.served import Asked

SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}, "strict": True}}
PROMPTS = [f"prompt {i}" for i in range(40)]


def test_most_answers_invalid_stops_before_the_rest_is_paid_for(tmp_path) -> None:
    with serving(answer("maybe")) as server:
        with pytest.raises(
            DataError, match=r"16 of the first 16 answers cannot be used: 16 none of the labels\."
        ):
            ask(server, tmp_path, PROMPTS, problem=lambda text: f"none of the labels ({text!r})")
        assert len(server.sent) == 16


def test_an_invalid_answer_is_kept_as_it_came_for_whoever_reads_it_by_another_task(tmp_path) -> None:
    with serving(lambda sent, times: answer("no" if sent.prompt == "b" else "yes")) as server:
        given = ask(server, tmp_path, ["a", "b"], problem=lambda text: "" if text == "yes" else "wrong")
        assert texts(given) == ["yes", "no"]
        assert [one.reason for one in given] == ["", ""]
        assert [(one.tokens_in, one.tokens_out) for one in given] == [(10, 5), (10, 5)]


def test_the_schema_is_part_of_what_identifies_a_request(tmp_path) -> None:
    with serving() as server:
        ask(server, tmp_path, ["a"])
        ask(server, tmp_path, ["a"], response_format=SCHEMA)
        ask(server, tmp_path, ["a"], response_format=SCHEMA)
        assert [one.body.get("response_format") for one in server.sent] == [None, SCHEMA]


def test_an_answer_that_shows_the_schema_to_be_ignored_stops_the_run(tmp_path) -> None:
    with serving(answer("Sure!")) as server, pytest.raises(RecipeError) as stopped:
        ask(server, tmp_path, ["a"], response_format=SCHEMA, ignores=lambda text: "no JSON")
    assert "the server ignores a field: response_format was sent" in stopped.value.message
    assert "task.response_format: false" in stopped.value.fix


def test_a_refused_schema_is_known_by_the_field_that_the_error_names(tmp_path) -> None:
    """Providers name an invalid schema by the field alone, without a code."""
    act = error(400, message="Invalid schema")
    act = type(act)(400, act.body.replace(b'"param": null', b'"param": "response_format"'))
    with (
        serving(act) as server,
        pytest.raises(RecipeError, match="response_format: Invalid schema") as stopped,
    ):
        ask(server, tmp_path, ["a"], response_format=SCHEMA)
    assert "task.response_format: false" in stopped.value.fix


def cut(prompt: str, text: str, finish: str) -> str:
    return "cut off at the limit of tokens" if finish == "length" else ""


def test_a_cut_off_answer_is_called_that_and_not_invalid(tmp_path) -> None:
    """Half an object is no JSON, and what helps is a larger limit."""
    with serving(answer("half", "length")) as server, pytest.raises(DataError, match="16 cut off") as raised:
        ask(server, tmp_path, PROMPTS, judge=cut, problem=lambda text: "no JSON")
    assert "Raise generate.max_new_tokens" in raised.value.fix


def longer(sent, times):
    """Every answer needs 40 tokens; a server that thinks says nothing before."""
    if sent.body["max_tokens"] < 40:
        return answer(
            "", "length", reasoning_content="hm", usage={"prompt_tokens": 10, "completion_tokens": 20}
        )
    return answer(f"so {sent.prompt}", usage={"prompt_tokens": 10, "completion_tokens": 40})


def test_first_answers_that_are_asked_for_at_more_tokens_do_not_stop_a_run(tmp_path) -> None:
    said: list[str] = []
    options = {"retry_truncated": 60}
    with serving(longer) as server:
        given = ask(server, tmp_path, PROMPTS, options, judge=cut, problem=lambda text: "", say=said.append)
        assert {one.finish for one in given} == {"stop"}
        assert len(server.sent) == 80
        assert any("16 of them once they are asked for again, at more tokens" in line for line in said)
        # Each is 10 + 20 tokens now and up to 10 + 60 once more; what is announced holds both.
        assert any(
            f"projected {40 * (PRICE.cost(10, 20) + PRICE.cost(10, 60)):.4g} USD" in line for line in said
        )
        # A later start reads each longer answer by the longer request: none is over its limit.
        more = [*PROMPTS, *(f"more {i}" for i in range(20))]
        given = ask(server, tmp_path, more, options, judge=cut, problem=lambda text: "")
        assert {one.finish for one in given} == {"stop"}
        assert len(server.sent) == 120


def test_the_first_answers_are_judged_beside_all_that_was_asked(tmp_path) -> None:
    """A filter that excuses what the prompt holds is told the turns before the last one too."""
    turns = ({"role": "system", "content": "Say [INST]."}, {"role": "user", "content": "go"})
    many = [Asked((turns[0], {**turns[1], "content": f"go {i}"}), 10, (0,)) for i in range(20)]
    seen: list[str] = []

    def judge(prompt: str, text: str, finish: str) -> str:
        seen.append(prompt)
        return ""

    with serving() as server:
        ask(server, tmp_path, [], asked=many, judge=judge)
    assert set(seen) >= {"Say [INST].\ngo 3"}
    assert all(prompt.startswith("Say [INST].\ngo ") for prompt in seen)


def test_an_answer_comes_with_what_was_paid_for_it_whoever_asked(tmp_path) -> None:
    with serving() as server:
        first = ask(server, tmp_path, ["a"])
        (again,) = ask(server, tmp_path, ["a"], payer="another/generate", teacher={"price": None})
    assert again.cost == first[0].cost == pytest.approx(PRICE.cost(10, 5))
