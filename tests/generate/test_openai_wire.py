"""What is sent and how: headers, proxies, and replies that no library can read."""

from __future__ import annotations

import threading

import pytest

from builders.asking import Agreed, ask, texts
from builders.endpoint import Act, Turned, answer, serving
from potstill.errors import MachineError, ProviderError, RecipeError
from potstill.generate import wire
from potstill.generate.served import Clock
from potstill.teachers import served

FORTY = [f"p{i}" for i in range(40)]


def lower(headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("name", ["Authorization", "authorization"])
def test_headers_of_the_environment_are_not_sent_and_replace_no_key(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setenv(
        "OPENAI_CUSTOM_HEADERS", f"X-Other: of-another\n{name}: Bearer of-another\nX-Ours: of-another"
    )
    monkeypatch.setenv("K", "our-own-key")
    monkeypatch.setenv("GATEWAY", "our-gateway")
    teacher = {"key_env": "K", "headers_env": {"x-ours": "GATEWAY"}}
    with serving() as server:
        ask(server, tmp_path, ["a"])
        ask(server, tmp_path, ["b"], teacher=teacher)
        without, with_key = (lower(sent.headers) for sent in server.sent)
    assert "of-another" not in f"{without} {with_key}"
    assert "authorization" not in without
    assert (with_key["authorization"], with_key["x-ours"]) == ("Bearer our-own-key", "our-gateway")


def test_a_header_called_authorization_is_sent_as_it_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GATEWAY", "our-gateway")
    with serving() as server:
        ask(server, tmp_path, ["a"], teacher={"headers_env": {"authorization": "GATEWAY"}})
        assert lower(server.sent[0].headers)["authorization"] == "our-gateway"


def test_an_unknown_price_is_asked_for_where_a_gateway_takes_a_key(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GATEWAY", "our-gateway")
    agreed = Agreed(RecipeError("no"))
    teacher = {"headers_env": {"api-key": "GATEWAY"}, "price": None}
    with serving() as server, pytest.raises(RecipeError, match="no"):
        ask(server, tmp_path, FORTY, confirm=agreed, teacher=teacher)
    assert agreed.questions == ["ask for 24 more answers at an unknown price"]


def test_a_name_that_no_header_can_have_is_refused(tmp_path) -> None:
    with pytest.raises(RecipeError, match="'X Key' is no name of a header"):
        served.build(None, endpoint="http://h/v1", model="m", headers_env={"X Key": "GATEWAY"})


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_a_server_on_this_machine_is_asked_without_a_proxy(tmp_path, monkeypatch, proxy) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    with serving() as server:
        assert texts(ask(server, tmp_path, ["a"], {"attempts": 1})) == ["so a"]


def test_a_proxy_that_cannot_be_used_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(MachineError, match="the proxy that the environment names cannot be used.*NO_PROXY"):
        ask("http://teacher.example/v1", tmp_path, ["a"])


def test_a_reply_whose_encoding_is_broken_is_tried_again_and_counted(tmp_path) -> None:
    broken = Act(body=b"not gzip at all", headers={"content-encoding": "gzip"})
    seen = []
    with serving(lambda sent, times: answer() if times else broken) as server:
        assert texts(ask(server, tmp_path, ["a"], on_progress=seen.append)) == ["fine"]
    assert seen[-1].unknown == 1


def test_whatever_a_library_raises_over_a_reply_is_a_request_without_an_answer(tmp_path, monkeypatch) -> None:
    def broken(*_):
        raise KeyError("odd")

    monkeypatch.setattr(wire.Wire, "_read", broken)
    with serving() as server, pytest.raises(ProviderError, match=r"the connection broke \(KeyError\)"):
        ask(server, tmp_path, ["a"], {"attempts": 2})


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_body_that_drips_in_is_left_at_the_time_limit_whatever_its_status(tmp_path, status) -> None:
    clock = Turned()

    def script(sent, times):
        clock.time += 0 if times else 21
        return answer() if times else Act(status, b" " * 64, how="drip")

    with serving(script) as server:
        given = ask(server, tmp_path, ["a"], {"timeout": 20.0}, clock=clock)
        assert texts(given) == ["fine"]
        assert len(server.sent) == 2


def test_a_reply_that_stalls_between_two_parts_ends_within_the_time_limit(tmp_path) -> None:
    """The client alone would wait the whole limit again after each part: here a minute, so that only the engine's
    own limit can end it."""
    gone = threading.Event()
    wire_ = wire.Wire("http://127.0.0.1:9/v1", "chat", ("",), {}, 0.3, Clock())
    wire_._openai.timeout = 60.0
    with serving(Act(body=b" " * 64, how="stall")) as server:
        server.gone = gone
        wire_._openai.base_url = server.url
        reply = wire_.send({"model": "m", "messages": [{"role": "user", "content": "a"}]}, "k")
        gone.set()
    wire_.close()
    assert reply.fault is not None
    assert reply.fault.reason == "no reply in time"


def test_a_redirect_is_not_followed(tmp_path) -> None:
    """Headers of a gateway are for that gateway."""
    with serving() as other:
        act = Act(307, b"", {"location": f"{other.url}/chat/completions"})
        with serving(act) as server, pytest.raises(ProviderError, match="answers with something else: 307"):
            ask(server, tmp_path, ["a"])
        assert other.sent == []


def test_a_short_key_is_no_secret_that_would_be_cut_out_of_answers(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("K", "EMPTY")
    with serving(answer("the set is EMPTY")) as server:
        assert texts(ask(server, tmp_path, ["a"], teacher={"key_env": "K"})) == ["the set is EMPTY"]


def test_what_the_environment_says_for_another_provider_is_not_sent(tmp_path, monkeypatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "of-another-provider")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with serving() as server:
        ask(server, tmp_path, ["a"])
        assert "of-another-provider" not in str(server.sent[0].headers)
        assert "authorization" not in server.sent[0].headers
