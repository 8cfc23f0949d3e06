"""Requests that the server refuses without saying why."""

from __future__ import annotations

import pytest

from builders.asking import Agreed, ask, texts
from builders.endpoint import answer, error, serving
from potstill.errors import ProviderError, RecipeError
from potstill.generate.price import Price

FORTY = [f"p{i}" for i in range(40)]


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("missing", ["stop", "skip"])
def test_an_endpoint_that_refuses_every_one_of_the_first_requests_stops_the_run(
    tmp_path, status, missing
) -> None:
    with serving(error(status, "", "the model is loading")) as server:
        with pytest.raises(ProviderError, match="16 of 40 requests have no answer: refused by the server"):
            ask(server, tmp_path, FORTY, {"missing": missing})
        assert len(server.sent) == 16


def test_one_answer_among_fifteen_refused_requests_does_not_let_the_rest_be_asked(tmp_path) -> None:
    with serving(lambda sent, times: answer() if sent.prompt == "p1" else error(400)) as server:
        with pytest.raises(ProviderError, match="15 of 40 requests have no answer"):
            ask(server, tmp_path, FORTY)
        assert len(server.sent) == 16


def test_refused_requests_are_asked_again_by_the_next_run(tmp_path) -> None:
    """The refusal may pass, such as that of a model which is loading."""

    def script(sent, times):
        return error(400, "", "loading") if sent.prompt == "p3" and times == 0 else answer(sent.prompt)

    with serving(script) as server:
        with pytest.raises(ProviderError, match="1 of 40 requests have no answer: refused by the server"):
            ask(server, tmp_path, FORTY)
        assert texts(ask(server, tmp_path, FORTY)) == FORTY
        assert len(server.sent) == 41


def test_an_endpoint_that_starts_to_refuse_is_left_after_half_of_the_last_fifty(tmp_path) -> None:
    with serving(lambda sent, times: answer() if len(server.sent) <= 30 else error(400)) as server:
        with pytest.raises(ProviderError, match=r"\d+ of the last \d+ requests .*refused by the server"):
            ask(server, tmp_path, [f"p{i}" for i in range(300)], {"missing": "skip"})
        assert len(server.sent) < 100


def test_a_price_is_agreed_to_where_half_of_the_first_requests_were_refused(tmp_path) -> None:
    """Refused requests cost nothing and say nothing of the price of the others."""
    agreed = Agreed(RecipeError("no"))
    with serving(lambda sent, times: error(400) if len(server.sent) % 2 else answer()) as server:
        with pytest.raises(RecipeError, match="no"):
            ask(server, tmp_path, FORTY, confirm=agreed, teacher={"price": Price(1000.0, 10_000.0)})
        assert len(server.sent) == 16
    assert agreed.questions == ["ask for 24 more answers for about 1.92 USD"]
