"""What a reply without an answer means."""

from __future__ import annotations

import json

import pytest

from potstill.errors import ProviderError, RecipeError
from potstill.generate.faults import FIXES, TABLE, Fault, error_of, of_status, read_error, retry_after

NOW = 1_000_000_000.0  # Sun, 09 Sep 2001 01:46:40 GMT


# W-10
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "300"}, 300.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Sun, 09 Sep 2001 01:47:10 GMT"}, 30.0),
        ({"retry-after": "Sun, 09 Sep 2001 03:47:10 +0200"}, 30.0),
        ({"retry-after": "Sat, 08 Sep 2001 01:46:40 GMT"}, 0.0),
        ({"retry-after": "Sun, 99 Sep 2001 01:47:10 GMT"}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "60"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "60"}, 60.0),
    ],
)
def test_every_form_of_retry_after_is_read_and_garbage_says_nothing(headers, seconds) -> None:
    assert retry_after(headers, NOW) == seconds


# W-09, W-11, W-16
@pytest.mark.parametrize(
    ("status", "code", "action"),
    [
        (429, "", "wait"),
        (429, "rate_limit_exceeded", "wait"),
        (429, "insufficient_quota", "stop"),
        (402, "", "stop"),
        (401, "", "stop"),
        (403, "", "stop"),
        (403, "content_policy_violation", "reject"),
        (404, "model_not_found", "stop"),
        (400, "context_length_exceeded", "reject"),
        (400, "content_filter", "reject"),
        (400, "unsupported_parameter", "refuse"),
        (400, "", "reject"),
        (422, "", "reject"),
        (408, "", "again"),
        (409, "", "again"),
        (500, "", "again"),
        (503, "", "again"),
        (529, "overloaded_error", "again"),
        (200, "server_error", "again"),
        (302, "", "stop"),
    ],
)
def test_the_status_and_the_code_decide_never_the_words(status, code, action) -> None:
    body = {"error": {"message": "rate limit, quota, content filter, timeout", "code": code or None}}
    assert of_status(status, json.dumps(body).encode()).action == action


@pytest.mark.parametrize(
    ("body", "codes", "said"),
    [
        (b'{"error": {"message": "no", "code": "A_B", "type": "t"}}', {"a_b", "t"}, "no"),
        (b'{"error": {"message": "no", "param": "top_p"}}', set(), "top_p: no"),
        (b'{"error": "plain"}', set(), "plain"),
        (b'{"detail": "not found"}', set(), "not found"),
        (b'{"error": {"code": 400, "message": "no"}}', set(), "no"),
        (b'{"error": {"innererror": {"code": "ResponsibleAIPolicyViolation"}}}', {"responsibleaipolicyviolation"}, ""),
        (b"[1, 2]", set(), "[1, 2]"),
        (b"<html>\n  bad gateway", set(), "<html> bad gateway"),
        (b"", set(), ""),
        (b"\xff\xfe", set(), "\ufffd\ufffd"),
        (b"[" * 5000, set(), "[" * 200),
    ],
)  # fmt: skip
def test_an_error_body_of_any_form_is_read(body, codes, said) -> None:
    assert read_error(body) == (codes, said)


def test_every_reason_to_stop_says_what_to_check() -> None:
    assert {reason for _, _, action, reason, _ in TABLE if action == "stop"} == FIXES.keys()
    error = error_of(of_status(404, b"404 page not found."))
    assert isinstance(error, ProviderError)
    assert error.message == "there is no such model or address: 404: 404 page not found."
    assert "teacher.endpoint up to its version (https://HOST/v1)" in error.fix
    assert isinstance(error_of(Fault("refuse", "the server refuses a field", "no")), RecipeError)
