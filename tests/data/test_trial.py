"""A chat template that never ends, or grows without end, is refused at once and by name."""

from __future__ import annotations

import json
import os
import threading

import pytest

from builders import chats, places
from builders.cli import potstill
from builders.tiny import TEMPLATE, tiny_tokenizer
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.data.trial import require_bounded
from potstill.errors import DataError

COUNT = "{% for i in range(100000) %}"
NESTED = 2 * COUNT + 2 * "{% endfor %}"
DOUBLING = "{% set ns = namespace(x='x') %}{% for i in range(N) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
TIME, MEMORY, TEXT = "1 second of computing", "512 MB of memory", "1,000,000 characters"


@pytest.mark.parametrize(
    ("bomb", "limit"),
    [
        (NESTED, TIME),
        (TWICE, TIME),
        ("{{ 7 ** (10 ** 9) }}", TIME),
        ("{% if messages | length > 4 %}" + NESTED + "{% endif %}", TIME),
        ("{{ 'x' * 10 ** 9 }}", MEMORY),
        ("{% if tools %}{{ ('x' * 10 ** 9) | length }}{% endif %}", MEMORY),
        ("{{ (range(100000) | list * 100000)[::2] }}", MEMORY),
        ("{{ 'x' | center(10 ** 9) }}", MEMORY),
        ("{{ '%1000000000d' | format(1) }}", MEMORY),
        ("{{ [1] | batch(10 ** 9, 0) | list }}", MEMORY),
        (DOUBLING.replace("N", "60"), MEMORY),
        (DOUBLING.replace("N", "22") + "{{ ns.x }}", TEXT),
    ],
)
def test_what_a_template_needs_is_limited(bomb: str, limit: str) -> None:
    with pytest.raises(DataError, match=rf"^models/a: the chat template needs more than {limit} for a few"):
        require_bounded(TEMPLATE + bomb, {}, "models/a")


@pytest.mark.parametrize(
    "template",
    [TEMPLATE, chats.CHATML, chats.MARKED, chats.TOOLS, chats.STRICT, chats.PREFILLED, "{% for %}", "{{ 1 / 0 }}",
     "{{ strftime_now('%Y') }}{{ raise_exception('no') }}", "{{ messages | tojson(indent=2) }}", ""],
)  # fmt: skip
def test_other_templates_pass_the_trial(template: str) -> None:
    require_bounded(template, {"bos_token": "<s>"}, "models/a")


def test_a_template_is_tried_in_any_thread_and_anywhere(tmp_path, monkeypatch) -> None:
    """No file of the working directory takes the place of what the trial imports."""
    (tmp_path / "jinja2.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    refused = []

    def attempt() -> None:
        try:
            require_bounded(NESTED + "{# of a thread #}", {}, "models/a")
        except DataError as error:
            refused.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ 'a'.nothing() }}", "no attribute"),
        ("{{ 10 ** 5000 }}", "digits"),
    ],
)
@pytest.mark.parametrize("marks", [False, True])
def test_whatever_a_template_raises_names_the_row(fault: str, reason: str, marks: bool) -> None:
    template = (chats.MARKED if marks else chats.CHATML) + fault
    row = Row("r", chats.chat("a", "yes"), source="a.jsonl:7")
    with pytest.raises(DataError, match=rf"a\.jsonl:7: the chat template refuses it: .*{reason}"):
        Templater(chats.bytes_tokenizer(template)).encode_row(row)


@pytest.mark.parametrize("command", [("check", "--quick"), ("run",)])
@pytest.mark.parametrize("owner", ["teacher", "student", "file"])
def test_check_and_run_refuse_it_with_its_owner(tmp_path, command, owner):
    places.write(tmp_path)
    template, changes = TEMPLATE + NESTED, {}
    if owner == "file":
        (tmp_path / "own.jinja").write_text(template)
        changes = {"data": "{train: rows.jsonl, template: {file: own.jinja}}"}
    else:
        tokenizer = tiny_tokenizer(template=template)
        if owner == "student":
            places.save_tiny(tmp_path / "student")
            changes = {"student": "{model: student}"}
        tokenizer.save_pretrained(tmp_path / owner)
    places.recipe(tmp_path, **changes)
    done = potstill(*command, "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert "needs more than 1 second" in error["message"]
    assert error["path"].endswith("own.jinja" if owner == "file" else owner)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_template_file_is_a_regular_file(tmp_path, kind):
    place = tmp_path / "own.jinja"
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](place)
    places.write(tmp_path, data="{train: rows.jsonl, template: {file: own.jinja}}")
    done = potstill("check", "--quick", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "not a regular file" in done.stderr
