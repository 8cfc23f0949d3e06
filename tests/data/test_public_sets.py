"""First rows in the documented forms of public data sets: read right, or refused by name with a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builders.chats import chat, write_lines
from potstill.data.rows import Row, read_rows
from potstill.errors import DataError


def read(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> Row:
    return read_rows([write_lines(tmp_path / "a.jsonl", *rows)], **options).rows[0]


def refused(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, *rows, **options)
    assert "a.jsonl:1: " in str(caught.value)
    return str(caught.value)


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


DOLLY = {
    "instruction": "Which of the two rivers is longer?",
    "context": "The Elm runs for 40 km, the Ash for 65 km.",
    "response": "The Ash.",
    "category": "closed_qa",
}


def test_instructions_with_a_passage_are_questions_about_it(tmp_path):
    assert read(tmp_path, DOLLY).messages == chat(
        "Which of the two rivers is longer?\n\nThe Elm runs for 40 km, the Ash for 65 km.", "The Ash."
    )
    without = {**DOLLY, "context": "", "category": "open_qa"}
    assert read(tmp_path, without).messages == chat("Which of the two rivers is longer?", "The Ash.")


MESSAGE = {
    "message_id": "m1", "parent_id": None, "user_id": "u1", "created_date": "2023-02-01T10:00:00+00:00",
    "text": "Why is the sky blue?", "role": "prompter", "lang": "en", "review_count": 3, "deleted": False,
    "rank": None, "synthetic": False, "message_tree_id": "m1", "tree_state": "ready_for_export",
}  # fmt: skip


def test_single_messages_of_a_tree_are_no_documents(tmp_path):
    """Each holds `text`, and a row of text would be trained on whole, whoever said it."""
    reply = {
        **MESSAGE,
        "message_id": "m2",
        "parent_id": "m1",
        "role": "assistant",
        "text": "It scatters.",
        "rank": 0,
    }
    said = refused(tmp_path, MESSAGE, reply)
    assert (
        "the column 'role' is not read, and its name says that it holds a turn's place in a conversation"
        in said
    )
    assert "the column 'parent_id' is not read" in refused(tmp_path, reply, columns={"role": "unused"})
    rated = {**MESSAGE, "labels": {"name": ["spam"], "value": [0.0], "count": [3]}}
    assert "is not read" in refused(tmp_path, rated)


def test_a_tree_of_replies_is_refused(tmp_path):
    tree = {"message_tree_id": "m1", "prompt": {**MESSAGE, "replies": [{**MESSAGE, "replies": []}]}}
    assert "the column 'prompt' is an object, not text or a list of messages" in refused(tmp_path, tree)


def test_a_thread_is_read_by_its_roles_or_refused(tmp_path):
    thread = [turn("prompter", "Why?"), turn("assistant", "So.")]
    assert "messages[0] has the role 'prompter'" in refused(tmp_path, {"messages": thread})
    thread = [turn("user", "Why?"), turn("assistant", "So.")]
    assert read(tmp_path, {"messages": thread, "message_tree_id": "m1", "lang": "en"}).messages == chat(
        "Why?", "So."
    )


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("talk", [False, True])
def test_an_answer_with_a_verdict_is_not_trained_on_without_it(tmp_path, label, talk):
    row: dict[str, Any] = {"prompt": "Name a prime.", "completion": "Nine.", "label": label}
    if talk:
        row |= {"prompt": [turn("user", row["prompt"])], "completion": [turn("assistant", row["completion"])]}
    said = refused(tmp_path, row)
    assert "the column 'label' is not read, and its name says that it holds a judgement" in said
    assert "data.weight" not in said  # it takes numbers
    weighed = read(tmp_path, row, used=["label"])
    assert (weighed.messages, weighed.extra["label"]) == (chat("Name a prime.", "Nine."), label)


def test_a_judgement_that_is_a_number_can_weigh_its_row(tmp_path):
    for value in (0.5, "0.5"):
        said = refused(tmp_path, {"prompt": "Name a prime.", "completion": "Seven.", "label": value})
        assert "data.weight: label to weigh rows by it" in said


PAIR = {"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Nine."}
TALKS = {
    "prompt": "Name a prime.",
    "chosen": [turn("user", "Name a prime."), turn("assistant", "Seven.")],
    "rejected": [turn("user", "Name a prime."), turn("assistant", "Nine.")],
}


def test_a_pair_of_answers_is_read_once_the_recipe_says_which(tmp_path):
    said = refused(tmp_path, PAIR)
    assert "the column 'chosen' is not read, and its name says that it holds an answer" in said
    assert "data.columns: {chosen: response} to read it" in said
    said = refused(tmp_path, PAIR, columns={"chosen": "response"})
    assert "the column 'rejected' is not read" in said
    assert "data.weight" not in said
    columns = {"chosen": "response", "rejected": "unused"}
    assert read(tmp_path, PAIR, columns=columns).messages == chat("Name a prime.", "Seven.")


def test_a_pair_of_conversations_never_asks_twice(tmp_path):
    """Each holds the prompt already."""
    said = refused(tmp_path, TALKS, columns={"chosen": "response", "rejected": "unused"})
    assert (
        "'response' begins with a turn of the user: a whole conversation is read from the column 'messages'"
        in said
    )
    columns = {"chosen": "messages", "rejected": "unused", "prompt": "unused"}
    assert read(tmp_path, TALKS, columns=columns).messages == chat("Name a prime.", "Seven.")
    scored = {**TALKS, "messages": TALKS["chosen"], "score_chosen": 8.0, "score_rejected": 2.0}
    assert "is not read" in refused(tmp_path, scored)
    bare = {
        "chosen": "\n\nHuman: Name a prime.\n\nAssistant: Seven.",
        "rejected": "\n\nHuman: Name a prime.\n\nAssistant: Nine.",
    }
    assert "the columns chosen, rejected are of no known format" in refused(tmp_path, bare)


TOOL = {
    "name": "price",
    "description": "The price of a fruit.",
    "parameters": {"type": "object", "properties": {"fruit": {"type": "string"}}},
}
CALL = {"name": "price", "arguments": {"fruit": "pear"}}


def test_calls_with_speakers_of_their_own_are_tool_calls(tmp_path):
    row = {
        "conversations": [
            {"from": "human", "value": "What does a pear cost?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": '{"price": 2}'},
            {"from": "gpt", "value": "Two."},
        ],
        "tools": json.dumps([TOOL]),
    }
    result = read(tmp_path, row)
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
    wanted = (
        turn("user", "What does a pear cost?"),
        called,
        turn("tool", '{"price": 2}'),
        turn("assistant", "Two."),
    )
    assert (result.messages, result.tools) == (wanted, (TOOL,))


def test_calls_inside_the_words_of_an_answer_stay_there(tmp_path):
    said = [
        ("system", "system", f"You may call <tools>{json.dumps([TOOL])}</tools>."),
        ("human", "user", "What does a pear cost?"),
        ("gpt", "assistant", f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"),
        ("tool", "tool", '<tool_response>\n{"price": 2}\n</tool_response>'),
        ("gpt", "assistant", "Two."),
    ]
    row = {
        "id": "1", "conversations": [{"from": speaker, "value": text} for speaker, _, text in said],
        "tools": json.dumps([{"type": "function", "function": TOOL}]), "category": "Fruit", "subcategory": "Pears", "task": "Price",
    }  # fmt: skip
    result = read(tmp_path, row)
    assert result.messages == tuple(turn(role, text) for _, role, text in said)
    assert result.tools == ({"type": "function", "function": TOOL},)


def test_a_dialogue_written_as_one_text_is_no_conversation(tmp_path):
    row = {
        "system": f"SYSTEM: You may call -\n{json.dumps(TOOL)}",
        "chat": "USER: Price?\n\n\nASSISTANT: Two. <|endoftext|>\n\n\n",
    }
    assert "the columns system, chat are of no known format" in refused(tmp_path, row)
    assert "the column 'system' is not read" in refused(tmp_path, row, columns={"chat": "text"})


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
                       {"role": "assistant", "content": [{"type": "text", "text": "A pear."}]}], "images": ["a.png"]},
         r"messages[0].content[0] is 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "a"}}]},
                       turn("assistant", "A pear.")]}, r"messages[0].content[1] is 'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
                       turn("assistant", "A pear.")]}, r"messages[0].content[0] is 'input_audio'"),
        ({"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A pear."}]},
         "the column 'image' is not read, and its name says that it holds a picture or sound"),
        ({"messages": [turn("user", "<image>What is it?"), turn("assistant", "A pear.")], "images": ["a.png"]},
         "the column 'images' is not read"),
    ],
)  # fmt: skip
def test_a_question_about_a_picture_is_refused(tmp_path, row, complaint):
    assert complaint in refused(tmp_path, row)


def test_the_parts_of_a_chat_that_are_text_are_joined(tmp_path):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a pear?"}]
    row = {
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": "A fruit."}]},
        ]
    }
    assert read(tmp_path, row).messages == chat("What is a pear?", "A fruit.")
