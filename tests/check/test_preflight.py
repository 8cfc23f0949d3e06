"""What the preflight shows and proves before an hour is spent."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertModel

from builders import places, tiny
from builders.cli import potstill
from potstill.models import loading

ADDS = "{% if messages[0].role != 'system' %}{{ bos_token }}w70 w71 {% else %}{{ bos_token }}{% endif %}"


def test_check_shows_the_token_that_ends_an_answer(tmp_path):
    """The preflight shows the last tokens that are learnt, and says so when the end token also pads."""
    places.write(tmp_path)
    done = potstill("check", "--quick", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"answers end with </s>; last tokens of p\d+: w\d+ \| w\d+ w\d+ </s>", done.stdout)
    assert "is the padding token too" not in done.stdout
    assert done.stdout.count(" </s>⟧") == 3
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(tmp_path / "teacher")
    again = potstill("check", "--quick", "r.yaml", cwd=tmp_path)
    assert again.returncode == 0
    assert "it is the padding token too, which is safe" in again.stdout
    assert again.stdout.count(" </s>⟧") == 3


def test_check_fails_with_4_where_a_saved_student_loads_differently(tmp_path, monkeypatch):
    """The preflight saves, loads and compares before any step: a lost weight is an exit code of 4."""
    save = loading.save

    def lossy(model, tokenizer, folder):
        kept = model.lm_head.weight.detach().clone()
        with torch.no_grad():
            model.lm_head.weight[7] = 0
        save(model, tokenizer, folder)
        with torch.no_grad():
            model.lm_head.weight.copy_(kept)

    places.write(tmp_path)
    assert potstill("check", "r.yaml", cwd=tmp_path).returncode == 0
    monkeypatch.setattr(loading, "save", lossy)
    done = potstill("check", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 4
    failed = [item["name"] for item in json.loads(done.stdout)["items"] if not item["passed"]]
    assert failed == ["save and load"]


def test_a_system_prompt_that_the_template_adds_is_noted(tmp_path):
    """Rows without one get the template's: it stands in the notes and in the rendered rows."""
    places.write(tmp_path)
    file = tmp_path / "teacher/chat_template.jinja"
    file.write_text(ADDS + file.read_text().removeprefix("{{ bos_token }}"))
    done = potstill("check", "--quick", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert any("adds a system prompt of its own" in note and "w70 w71" in note for note in report["notes"])
    assert ["w70 w71" in row["text"] for row in report["rows"]] == [True] * 3


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("kind", ["BertForMaskedLM", "DistilBertModel"])
def test_an_encoder_is_refused_by_name_in_either_role(tmp_path, role, kind):
    """Encoders are out of scope and refused by name in either role, before anything is trained."""
    shape = {"vocab_size": 128, "pad_token_id": 0}
    bert = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, **shape
    )
    small = DistilBertConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64, **shape)
    model = BertForMaskedLM(bert) if kind == "BertForMaskedLM" else DistilBertModel(small)
    model.save_pretrained(tmp_path / "encoder")
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    places.write(tmp_path, **{role: "{model: encoder}"})
    for command in ("check", "run"):
        done = potstill(command, "r.yaml", cwd=tmp_path)
        assert done.returncode == 2
        assert f"{kind}, not a decoder-only text model" in done.stderr


def test_rows_are_limited_by_the_shorter_of_the_two_contexts(tmp_path):
    """A row may be as long as the shorter of the two contexts; what is longer is counted before the start."""
    small = tiny.tiny_model(layers=1)
    small.config.max_position_embeddings = 32
    small.save_pretrained(tmp_path / "small")
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "small")
    rows = [
        row | {"response": " ".join(["w30"] * (40 if i % 4 == 0 else 2))}
        for i, row in enumerate(places.answered())
    ]
    places.write(tmp_path, rows, student="{model: small}", data="{train: rows.jsonl, on_bad_row: skip}")
    done = potstill("check", "--quick", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    items = {item["name"]: item["detail"] for item in json.loads(done.stdout)["items"]}
    assert items["longest row"].startswith("32 tokens")
    longer = re.match(
        r"(\d+) of (\d+) rows \(\d+%\) are left out: \1 longer than max_length 32", items["lengths"]
    )
    names = {row.id for row in places.read(tmp_path).data.trained_on}
    assert (int(longer[1]), int(longer[2])) == (sum(int(name[1:]) % 4 == 0 for name in names), len(names))
