"""From rows to scored ids: which tokens are scored, one start token, one end, nothing tokenised twice."""

from __future__ import annotations

import pytest

from potstill.data.examples import encode
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from tiny import BOS, EOS, HEADER, TEMPLATE, tiny_tokenizer


def row(*turns: str, id: str = "r", **extra) -> Row:
    """Turns alternate user, assistant."""
    roles = ("user", "assistant")
    messages = tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(turns))
    return Row(id, messages, source="rows.jsonl:1", **extra)


def templater(**changes) -> Templater:
    return Templater(tiny_tokenizer(), **changes)


def test_one_start_token_one_end_token_and_only_the_answer_scored():
    (example,) = templater().encode_row(row("w10", "w20 w21"))
    assert example.input_ids == (BOS, 10, HEADER, 20, 21, EOS)
    assert example.scored == (False, False, False, True, True, True)


def test_an_answer_that_also_stands_in_the_prompt_is_scored_where_it_is_the_answer():
    (example,) = templater().encode_row(row("w20 w21 w10", "w20 w21"))
    assert example.input_ids == (BOS, 20, 21, 10, HEADER, 20, 21, EOS)
    assert example.scored.index(True) == 5


def test_a_template_without_markers_scores_every_assistant_turn_with_its_end():
    (example,) = templater().encode_row(row("w10", "w20 w21 w22", "w12", "w30 w31 w32 w33"))
    assert example.count == 3 + 4 + 2
    assert [t for t, s in zip(example.input_ids, example.scored, strict=True) if s] == [
        20,
        21,
        22,
        EOS,
        30,
        31,
        32,
        33,
        EOS,
    ]


def test_generation_markers_give_the_same_spans():
    marked = TEMPLATE.replace(
        "{{ m.content }}{{ eos_token }}", "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    )
    (plain,) = templater().encode_row(row("w10", "w20", "w12", "w30"))
    (by_marks,) = templater(template_text=marked).encode_row(row("w10", "w20", "w12", "w30"))
    assert by_marks == plain


def test_prompts_and_training_rows_agree_up_to_the_answer():
    t = templater()
    (example,) = t.encode_row(row("w10 w12", "w20"))
    prompt = t.prompt_ids(row("w10 w12").messages)
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert example.scored.index(True) == len(prompt)


def test_no_assistant_header_follows_the_answer():
    (example,) = templater().encode_row(row("w10", "w20", "w12", "w30"))
    assert example.input_ids.count(HEADER) == 2
    assert example.input_ids[-1] == EOS
    assert example.scored[-1]


def test_generated_ids_are_appended_and_never_tokenised_again():
    t = templater()
    prompt = t.prompt_ids(row("w10").messages)
    stopped = t.generated("a", prompt, (20, 21, EOS), "teacher")
    assert stopped.input_ids == (*prompt, 20, 21, EOS)
    cut = t.generated("a", prompt, (20, 21), "teacher", end=False)
    assert cut.input_ids == (*prompt, 20, 21)
    assert cut.scored[-1]
    assert cut.input_ids[-1] != EOS


def test_an_end_token_that_is_the_padding_token_stays_scored():
    from potstill.data.batch import collate

    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    (example,) = Templater(tokenizer).encode_row(row("w10", "w20"))
    batch = collate(
        [example, example.__class__("b", (BOS, 10, HEADER, 20, 21, 22, EOS), (False,) * 3 + (True,) * 4)],
        pad_id=EOS,
    )
    assert batch.attention_mask.tolist() == [[1] * 5 + [0] * 2, [1] * 7]
    assert batch.targets.tolist() == [20, EOS, 20, 21, 22, EOS]


def test_the_middle_end_token_of_a_chat_stays_visible():
    from potstill.data.batch import collate
    from potstill.types import Example

    ids = (1, 10, 2, 11, 20, 21, 2)
    example = Example("a", ids, (False,) * 4 + (True,) * 3)
    longer = Example("b", (*ids, 30, 31), (False,) * 8 + (True,))
    batch = collate([example, longer], pad_id=2)
    assert batch.input_ids[0].tolist() == [1, 10, 2, 11, 20, 21, 2, 2, 2]
    assert batch.attention_mask[0].tolist() == [1] * 7 + [0] * 2
    assert batch.targets.tolist() == [20, 21, 2, 31]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (({"role": "user", "content": "w10"},), "needs an assistant turn"),
        (
            (
                {"role": "user", "content": "w10"},
                {"role": "assistant", "content": "w20"},
                {"role": "tool", "content": "w30"},
            ),
            "last turn is by the tool",
        ),
        (
            (
                {"role": "user", "content": "w10"},
                {"role": "assistant", "content": "w20"},
                {"role": "assistant", "content": "w21"},
            ),
            "two assistant turns",
        ),
        (({"role": "system", "content": "w10"},), "system prompt only"),
        ((), "empty"),
    ],
)
def test_rows_without_an_answer_to_learn_say_what_is_missing(messages, words):
    with pytest.raises(DataError, match=words) as caught:
        templater().encode_row(Row("r", messages, source="rows.jsonl:7"))
    assert "rows.jsonl:7" in str(caught.value)


def test_a_tokenizer_without_a_template_is_refused_for_chats():
    with pytest.raises(DataError, match="template"):
        Templater(tiny_tokenizer(template=None)).prompt_ids(row("w10").messages)


def test_template_switches_reach_prompts_and_training_rows_alike():
    switched = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{% if flag %}w90 {% endif %}")
    on, off = (
        templater(template_text=switched, template_kwargs={"flag": True}),
        templater(template_text=switched),
    )
    for t, expected in ((on, True), (off, False)):
        (example,) = t.encode_row(row("w10", "w20"))
        assert (90 in example.input_ids) is expected
        assert (90 in t.prompt_ids(row("w10").messages)) is expected
    assert on.fingerprint != off.fingerprint


SYSTEM_REFUSED = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TEMPLATE
)


def test_system_prompts_are_kept_merged_or_dropped_as_told():
    messages = (
        {"role": "system", "content": "w90"},
        {"role": "user", "content": "w10"},
        {"role": "assistant", "content": "w20"},
    )
    chat = Row("r", messages, source="rows.jsonl:1")
    with pytest.raises(DataError, match="system: merge"):
        templater(template_text=SYSTEM_REFUSED).encode_row(chat)
    (merged,) = templater(template_text=SYSTEM_REFUSED, system="merge").encode_row(chat)
    assert 90 in merged.input_ids
    (dropped,) = templater(template_text=SYSTEM_REFUSED, system="drop").encode_row(chat)
    assert 90 not in dropped.input_ids


def test_long_rows_are_dropped_whole_and_counted_never_cut():
    rows = [row("w10", "w20", id="a"), row("w10 " * 30, "w20", id="b"), row("w10", "w20 " * 30, id="c")]
    found = encode(rows, templater(), max_length=10)
    assert [e.id for e in found.examples] == ["a"]
    assert found.funnel["too_long"] == 2
    assert found.length_for(1.0) == max(found.lengths)


def test_a_run_in_which_no_row_has_a_target_is_refused_with_the_count():
    rows = [row("w10 " * 40, "w20", id=str(i)) for i in range(64)]
    with pytest.raises(DataError, match="64 of 64 rows have no target"):
        encode(rows, templater(), max_length=32)


def test_text_rows_score_everything_but_the_first_token():
    (example,) = templater().encode_row(Row("t", text="w10 w20 w30"))
    assert example.scored[0] is False
    assert all(example.scored[1:])
    assert example.input_ids[-1] == EOS
