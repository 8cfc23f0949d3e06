"""Fields that the server ignores or does not know, in the run that asks and in every later one."""

from __future__ import annotations

import json

import pytest

from builders.asking import PROMPTS, ask, attempts, texts
from builders.endpoint import Act, answer, serving
from potstill.errors import DataError, ProviderError, RecipeError

FORTY = [f"p{i}" for i in range(40)]
TOO_LONG = answer("long", usage={"prompt_tokens": 1, "completion_tokens": 99})


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("runs", [2, 3])
def test_a_seed_that_is_ignored_is_an_error_in_every_run(tmp_path, count, runs) -> None:
    with serving(lambda sent, times: answer(f"so {times}")) as server:
        for _ in range(runs):
            with pytest.raises(RecipeError, match="ignores a field: seed"):
                ask(server, tmp_path, FORTY[:count], teacher={"send_seed": True})
        assert len(server.sent) == min(count, 16) + runs


def test_a_seed_that_counts_is_tried_once_for_all_runs(tmp_path) -> None:
    with serving(lambda sent, times: answer(f"so {sent.prompt}")) as server:
        for _ in range(3):
            ask(server, tmp_path, FORTY, teacher={"send_seed": True})
        ask(server, tmp_path, FORTY, most=40, teacher={"send_seed": True})
        assert len(server.sent) == 41


def test_an_answer_beyond_the_limit_is_never_trained_on(tmp_path) -> None:
    with serving(TOO_LONG) as server:
        with pytest.raises(RecipeError, match="max_tokens was 20, and an answer has 99 tokens"):
            ask(server, tmp_path, ["a", "b"], workers=1)
        with pytest.raises(RecipeError, match="max_tokens was 20"):
            ask(server, tmp_path, ["a", "b"], workers=1)
        given = ask(server, tmp_path, ["a", "b"])
        assert len(server.sent) == 2
    reason = "the server ignores a field (max_tokens was 20, and an answer has 99 tokens)"
    assert [one.reason for one in given] == [reason, reason]


def test_the_bill_counts_answers_beyond_the_limit_as_unusable(tmp_path) -> None:
    def script(sent, times):
        return TOO_LONG if FORTY.index(sent.prompt) < 20 else answer()

    with serving(script) as server:
        for prompt in FORTY[:20]:
            with pytest.raises(RecipeError):
                ask(server, tmp_path, [prompt])
        with pytest.raises(
            DataError, match="20 of the first 20 answers cannot be used: 20 the server ignores"
        ):
            ask(server, tmp_path, FORTY)
        assert len(server.sent) == 20


def test_a_cut_off_answer_makes_no_duplicate_of_the_same_text_that_ended(tmp_path) -> None:
    def script(sent, times):
        return answer("abc", "stop" if times else "length")

    with serving(script) as server:
        given = ask(server, tmp_path, ["a"], samples=2, workers=1)
    assert [(one.finish, one.reason) for one in given] == [("length", ""), ("stop", "")]
    assert texts(given) == ["abc", "abc"]


def test_a_limit_of_tokens_that_the_server_ignores_is_an_error(tmp_path) -> None:
    act = answer("long", usage={"prompt_tokens": 1, "completion_tokens": 99})
    with (
        serving(act) as server,
        pytest.raises(RecipeError, match="max_tokens was 20, and an answer has 99 tokens"),
    ):
        ask(server, tmp_path, PROMPTS)
    assert attempts(tmp_path, "state")[0] == ("answered",)  # it was paid for


def test_logprobs_that_the_server_ignores_are_an_error(tmp_path) -> None:
    with serving() as server, pytest.raises(RecipeError, match="an answer has none"):
        ask(server, tmp_path, PROMPTS, teacher={"extra_body": {"logprobs": True}})


def test_a_seed_that_the_server_ignores_is_an_error_before_the_rest_is_asked(tmp_path) -> None:
    with serving(lambda sent, times: answer(f"so {times}")) as server:
        with pytest.raises(RecipeError, match="ignores a field: seed"):
            ask(server, tmp_path, [f"p{i}" for i in range(40)], teacher={"send_seed": True})
        assert len(server.sent) == 17


def test_a_seed_that_counts_is_sent_with_every_sample(tmp_path) -> None:
    with serving(lambda sent, times: answer(f"so {sent.body['seed']}")) as server:
        given = ask(server, tmp_path, PROMPTS, samples=2, teacher={"send_seed": True})
        assert len({sent.body["seed"] for sent in server.sent}) == 2
    assert not any(one.reason for one in given)


def test_a_response_format_that_the_server_ignores_is_an_error_after_the_first_answers(tmp_path) -> None:
    with serving() as server:
        with pytest.raises(DataError, match="16 not the JSON that was asked for"):
            ask(
                server,
                tmp_path,
                [f"p{i}" for i in range(40)],
                teacher={"extra_body": {"response_format": {}}},
            )
        assert len(server.sent) == 16


def test_a_choice_more_than_asked_for_is_no_answer(tmp_path) -> None:
    two = json.dumps({"choices": [{"message": {"content": "a"}}] * 2}).encode()
    with serving(Act(body=two)) as server, pytest.raises(ProviderError, match="holds 2 choices"):
        ask(server, tmp_path, ["a"], {"attempts": 2})


def test_top_k_is_refused_where_nobody_says_that_the_server_knows_it(tmp_path) -> None:
    from potstill.generate.sampling import Sampling

    with pytest.raises(RecipeError, match="no field of the OpenAI protocol"):
        ask("http://127.0.0.1:9/v1", tmp_path, ["a"], sampling=Sampling(4, top_k=5))
