"""What each filter catches, what only looks like it, and which of them work by themselves."""

from __future__ import annotations

import pytest

from potstill.errors import MachineError, RecipeError
from potstill.filters import (
    contamination,
    duplicates,
    empty,
    language,
    leakage,
    loops,
    near_duplicates,
    personal,
    refusals,
    secrets,
    truncated,
)
from potstill.filters._candidate import Candidate, FilterContext
from potstill.filters._patterns import masked
from potstill.recipe import filters, plugins
from potstill.recipe.specs import FilterChoice

NOTHING = FilterContext()
# Put together here, so that no scanner takes this file for a leak.
KEYS = {
    "API key": ["AK" + "IAQ7RT2PLMZ4WXN9KD", "gh" + "p_" + "a1B2c3D4e5" * 4, "s" + "k-proj-" + "Zk3vQ9" * 7, "h" + "f_" + "aBcDeFgHiJ" * 4],
    "private key": ["-----BEGIN RSA PRIVATE" + " KEY-----\nMIIE", "-----BEGIN OPENSSH PRIVATE" + " KEY-----"],
    "password": ["pass" + 'word = "hG7kd92LmQ0xR4tYv8Zb"', "api_" + "key: 9f8e7d6c5b4a39281706f5e4d3c2"],
}  # fmt: skip


def one(
    plugin, text: str, prompt: str = "Say something.", finish: str = "stop", context=NOTHING, **options
) -> str:
    """The reason for one answer."""
    (reason,) = plugin.problems([Candidate(prompt, text, finish)], context, **options)
    return reason


def test_a_cut_off_answer_is_known_by_its_finish_alone() -> None:
    assert one(truncated, "whole.", finish="length") == "cut off at the limit of tokens"
    assert one(truncated, "half of a sent", finish="stop") == ""


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_answer_without_a_word_is_empty(text: str) -> None:
    assert one(empty, text) == "empty answer"


def test_refusals_and_loops_are_those_that_rows_are_counted_by() -> None:
    assert one(refusals, "I'm sorry, but I can't help with that.") == "refusal"
    assert one(refusals, "She wrote: \"I'm sorry, but I can't help with that.\"") == ""
    assert one(loops, "over and over again " * 20) == "repeats itself"
    assert one(loops, "Row, row, row your boat.") == ""


@pytest.mark.parametrize(
    ("text", "marker"),
    [
        ("Fine.<|im_end|>", "<|im_end|>"),
        ("Fine.\n<|start_header_id|>user", "<|start_header_id|>"),
        ("Fine. [INST] And you?", "[INST]"),
        ("Fine.<end_of_turn>", "<end_of_turn>"),
        ("Fine.\n\nUser: and you?", "User:"),
        ("Fine.\n### Instruction:\nGo on.", "### Instruction:"),
        ("Fine.<EOT>", "<EOT>"),
    ],
)
def test_a_piece_of_a_template_is_named_unless_the_prompt_holds_it(text: str, marker: str) -> None:
    context = FilterContext(special_tokens=frozenset({"<EOT>"}))
    assert one(leakage, text, context=context) == f"template leakage ({marker})"
    assert one(leakage, text, f"What does {marker} mean?", context=context) == ""


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "A list[INTEGER] | None",
        "The user: nobody.",
        "## Instruction manual\nRead it.",
        "<s>no</s>",
    ],
)
def test_text_that_only_looks_like_a_template_passes(text: str) -> None:
    assert one(leakage, text) == ""


def test_a_special_token_that_the_text_leaves_out_is_seen_in_the_ids() -> None:
    answer = Candidate("Hi", "Fine. Go on", raw="Fine.</s><s> Go on")
    context = FilterContext(special_tokens=frozenset({"</s>", "<s>"}))
    assert list(leakage.problems([answer], context)) == ["template leakage (</s>)"]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in KEYS.items() for text in texts])
def test_a_secret_is_named_by_its_kind_and_never_repeated(kind: str, text: str) -> None:
    reason = one(secrets, f"Use this one: {text}\nand go on.")
    assert reason == f"secret ({kind})"
    assert text.split()[-1] not in masked(f"Use this one: {text}") or kind == "private key"


@pytest.mark.parametrize(
    "text",
    ["AK" + "IAIOSFODNN7EXAMPLE", "password: your_password_goes_here_1", "The key sk-learn is a package.", "api_key = os.environ['API_KEY']"],
)  # fmt: skip
def test_examples_of_documentation_are_no_secrets(text: str) -> None:
    assert one(secrets, text) == ""


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("e-mail", "Write to jane.doe@mail-server.co.uk today."),
        ("phone", "Call +49 30 901820 now."),
        ("phone", "Call (212) 736-5000 now."),
        ("credit card", "Pay with 4539 1488 0343 6467."),
    ],
)
def test_personal_data_is_named_unless_the_prompt_brought_it(kind: str, text: str) -> None:
    assert one(personal, text) == f"personal data ({kind})"
    assert one(personal, text, f"Repeat: {text}") == ""
    assert one(personal, text, kinds=["e-mail"]) == (f"personal data ({kind})" if kind == "e-mail" else "")


@pytest.mark.parametrize(
    "text",
    ["jane@example.com", "Call (212) 555-0142.", "Pay with 4539 1488 0343 6468.", "On 2026-11-27, 1234567890 people.", "1.234.567,89"],
)  # fmt: skip
def test_invented_addresses_and_wrong_check_digits_are_nobodys(text: str) -> None:
    assert one(personal, text) == ""


def test_a_kind_of_personal_data_that_there_is_not_is_refused() -> None:
    with pytest.raises(RecipeError, match="shoe size"):
        one(personal, "", kinds=["shoe size"])


def test_the_same_answer_to_the_same_prompt_stays_once_and_a_label_stays_everywhere() -> None:
    pairs = [
        ("Is it good?", "Yes."),
        ("Is it good?", "yes. "),
        ("Is it bad?", "Yes."),
        ("Is it good?", "No."),
    ]
    answers = [Candidate(prompt, text) for prompt, text in pairs]
    assert list(duplicates.problems(answers, NOTHING)) == ["", "duplicate", "", ""]


def test_long_answers_that_are_nearly_the_same_stay_once() -> None:
    pytest.importorskip("datasketch")
    long = " ".join(f"word{i}" for i in range(60))
    texts = [long, long.replace("word30", "other"), " ".join(f"term{i}" for i in range(60)), "Yes.", "Yes."]
    answers = [Candidate(f"prompt {i}", text) for i, text in enumerate(texts)]
    assert list(near_duplicates.problems(answers, NOTHING)) == ["", "near duplicate", "", "", ""]
    assert list(near_duplicates.problems(answers, NOTHING, similarity=0.99)) == [""] * 5


def test_near_duplicates_without_their_package_say_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(MachineError, match=r"potstill\[quality\]"):
        list(near_duplicates.problems([], NOTHING))


@pytest.mark.parametrize("options", [{"similarity": 0.0}, {"similarity": 1.5}, {"words": 0}, {"least": 1}])
def test_near_duplicates_refuse_options_that_mean_nothing(options) -> None:
    with pytest.raises(RecipeError):
        list(near_duplicates.problems([], NOTHING, **options))


HELD = "the quick brown fox jumps over the lazy dog while seven wise owls watch quietly"  # 14 words


def test_thirteen_words_of_a_held_out_row_are_contamination() -> None:
    context = FilterContext(heldout=[HELD])
    assert one(contamination, f"He said: {HELD.upper()}, and left.", context=context) == "contamination"
    assert one(contamination, " ".join(HELD.split()[:12]), context=context) == ""
    assert one(contamination, " ".join(HELD.split()[:12]), context=context, words=8) == "contamination"
    # An instruction that the prompt repeats, as many prompts do.
    assert one(contamination, HELD, f"Copy this: {HELD}", context=context) == ""
    with pytest.raises(RecipeError, match="5 or more"):
        one(contamination, HELD, words=3)


@pytest.mark.parametrize(
    ("prompt", "text", "reason"),
    [
        ("What is the capital of France?", "法国的首都是巴黎，那是一个美丽的城市。", "wrong language"),
        ("What is the capital of France?", "Столица Франции - Париж.", "wrong language"),
        ("What is the capital of France?", "The capital of France is Paris (Париж).", ""),
        ("Translate into Chinese: the capital", "法国的首都是巴黎，那是一个美丽的城市。", ""),
        ("法国的首都是哪里？", "法国的首都是巴黎，那是一个美丽的城市。", ""),
        ("東京はどこですか。", "とうきょうはにほんにあります。", ""),
        ("What is 2 + 2?", "四", ""),
        ("1 + 1 = ?", "Столица Франции - Париж.", ""),
    ],
)
def test_an_answer_in_another_script_than_its_prompt_is_in_the_wrong_language(prompt, text, reason) -> None:
    assert one(language, text, prompt) == reason


def test_with_a_list_of_languages_each_long_answer_is_identified() -> None:
    pytest.importorskip("py3langid")
    german = (
        "Die Hauptstadt von Frankreich ist Paris, und sie liegt seit jeher an der Seine im Norden des Landes."
    )
    assert one(language, german, allowed=["en"]) == "wrong language (de)"
    assert one(language, german, allowed=["en", "de"]) == ""
    assert one(language, "Ja, natürlich.", allowed=["en"]) == ""  # too short to tell
    with pytest.raises(RecipeError, match="'klingon' is no language"):
        one(language, german, allowed=["klingon"])


@pytest.mark.parametrize(("name", "option"), [("language", "allowed"), ("personal", "kinds")])
def test_one_word_where_a_list_belongs_is_refused(name: str, option: str) -> None:
    (problem,) = plugins.check_options("filters", name, {option: "en"}, "generate.filters")
    assert "must be a list or null, not 'en'" in problem.message


def test_the_filters_that_work_by_themselves_and_what_they_do() -> None:
    assert {choice.name: filters.action_of(choice) for choice in filters.at_work(())} == {
        "empty": "reject", "truncated": "reject", "refusals": "count", "loops": "reject", "language": "count",
        "leakage": "reject", "secrets": "reject", "personal": "count", "contamination": "reject",
        "duplicates": "reject",
    }  # fmt: skip
    assert filters.at_work(None) == []


def test_a_recipe_changes_adds_and_turns_off() -> None:
    named = [
        FilterChoice(name="near_duplicates"),
        FilterChoice(name="loops", options={"action": "ignore"}),
        FilterChoice(name="refusals", options={"action": "reject"}),
    ]
    now = {choice.name: filters.action_of(choice) for choice in filters.at_work(named)}
    assert (now["near_duplicates"], now["refusals"]) == ("reject", "reject")
    assert "loops" not in now
    assert list(now)[:2] == ["empty", "truncated"]
    assert "refusals" in filters.in_words(filters.at_work(named)).partition("are rejected")[0]


@pytest.mark.parametrize("name", plugins.plugins("filters"))
def test_every_filter_states_what_it_is_and_judges_nothing_of_no_answers(name: str) -> None:
    signature = plugins.find("filters", name)
    assert {"LABEL", "BY_DEFAULT", "ORDER", "ALONE"} <= set(signature.constants)
    assert signature.options[0].name == "action"
    if name != "near_duplicates":
        assert list(plugins.load("filters", name).problems([], NOTHING)) == []
