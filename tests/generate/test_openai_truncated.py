"""Answers that the limit of tokens cut off: asked for under a larger one, once more, and no others with them."""

from __future__ import annotations

import pytest

from builders.asking import PROMPTS, Agreed, ask, texts
from builders.endpoint import answer, serving
from potstill.errors import BudgetSpent, RecipeError


@pytest.mark.parametrize("said", ["length", "MAX_TOKENS"])
def test_a_cut_off_answer_comes_back_with_its_finish_for_the_filters_to_judge(tmp_path, said) -> None:
    with serving(answer("half", said)) as server:
        (given,) = ask(server, tmp_path, ["a"])
    assert (given.text, given.finish, given.reason) == ("half", "length", "")


# W-02
def test_a_larger_limit_asks_only_for_what_was_cut_off(tmp_path) -> None:
    """Finished answers stay; they are none of the limit's business."""
    told: list[str] = []

    def script(sent, times):
        return (
            answer("long", "length")
            if sent.prompt == "w1" and sent.body["max_tokens"] == 20
            else answer("done")
        )

    with serving(script) as server:
        ask(server, tmp_path, PROMPTS)
        given = ask(server, tmp_path, PROMPTS, most=40, say=told.append)
        assert texts(given) == ["done"] * 12
        assert server.prompts["w1"] == 2
        assert len(server.sent) == 13
    assert any(
        "11 of them to the same request with another limit of tokens; 1 are asked for" in line
        for line in told
    )


def test_exact_reuse_asks_again_under_another_limit(tmp_path) -> None:
    with serving() as server:
        ask(server, tmp_path, ["a"])
        ask(server, tmp_path, ["a"], {"reuse": "exact"}, most=40)
        assert len(server.sent) == 2


def test_an_answer_longer_than_the_limit_now_is_not_taken(tmp_path) -> None:
    with serving() as server:
        ask(server, tmp_path, ["a"])
        ask(server, tmp_path, ["a"], most=4, teacher={})
        assert len(server.sent) == 2


def longer(sent, times):
    """Prompts that need more than 20 tokens; w2 needs more than 60."""
    needs = {"w1": 40, "w2": 99}.get(sent.prompt, 5)
    most = sent.body["max_tokens"]
    usage = {"prompt_tokens": 10, "completion_tokens": min(needs, most)}
    return answer(f"{sent.prompt} {min(needs, most)}", "stop" if needs <= most else "length", usage=usage)


# W-03
def test_an_answer_that_was_cut_off_is_asked_for_once_more_where_the_recipe_says_so(tmp_path) -> None:
    with serving(longer) as server:
        given = ask(server, tmp_path, PROMPTS, {"retry_truncated": 60})
        assert (given[1].text, given[1].finish, given[1].reason) == ("w1 40", "stop", "")
        assert (given[2].text, given[2].finish) == ("w2 60", "length")
        assert {prompt for prompt, count in server.prompts.items() if count > 1} == {"w1", "w2"}
        assert len(server.sent) == 14
        assert ask(server, tmp_path, PROMPTS, {"retry_truncated": 60})[2].text == "w2 60"
        assert len(server.sent) == 14
        # Without the option the first answers count.
        assert ask(server, tmp_path, PROMPTS, {})[1].text == "w1 20"
        assert len(server.sent) == 14


def test_the_second_request_is_within_the_budget_and_agreed_to(tmp_path) -> None:
    with serving(longer) as server:
        with pytest.raises(BudgetSpent, match="12 of 12 requests"):
            ask(server, tmp_path, PROMPTS, {"retry_truncated": 60, "budget_requests": 12})
        agreed = Agreed(RecipeError("no"))
        with pytest.raises(RecipeError, match="no"):
            ask(server, tmp_path, PROMPTS, {"retry_truncated": 60, "confirm_above": 0.0}, confirm=agreed)
        assert agreed.questions[0].startswith("ask for 2 more answers for about")
        assert len(server.sent) == 12


def test_a_second_limit_that_is_no_larger_is_refused(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"retry_truncated: is 20, and generate\.max_new_tokens is 20"):
        ask("http://127.0.0.1:9/v1", tmp_path, ["a"], {"retry_truncated": 20})
