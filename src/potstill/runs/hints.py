"""What to type after a run, as a shell of this place takes it, and the words of its result explained."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from potstill.console import typed
from potstill.recipe.recipe import Recipe
from potstill.recipe.training import Training
from potstill.runs import setup

PROMPT = "Why is the sky blue?"
# In the order in which a verdict uses them.
WORDS = {
    "held-out": "on prompts that no training saw",
    "KL(teacher‖student)": "how far the student's probabilities of the next token are from the teacher's; 0 where "
    "they are equal. Training with it is called forward KL",
    "nats": "the unit of KL; 0.69 nats are one bit",
    "token": "a word, or a piece of one, as the model reads text",
    "ROUGE-L": "how much of its wording an answer shares with a reference, from 0 to 1",
    "control": "the same student trained as long without the teacher's probabilities",
}


def words_of(text: str) -> list[str]:
    """One line on each word of a text that a newcomer may not know."""
    known = [(word, meaning) for word, meaning in WORDS.items() if word.lower() in text.lower()]
    width = max((len(word) for word, _ in known), default=0)
    return [f"  {word:{width}}  {meaning}" for word, meaning in known]


def next_commands(
    recipe: Path, overrides: Sequence[str], outputs: Mapping[str, Path], steps: int | None
) -> list[str]:
    """What to type next, each with its purpose: read the report, try the student, change a value, go on.

    Args:
        steps: those of the run's training, where a recipe leaves their number open.
    """
    commands = [line for part in _commands(recipe, overrides, outputs, steps) for line in part]
    if typed() != "potstill":
        activate = Path(typed(quoted=False)).with_name("activate")
        if activate.is_file():
            commands += ["# to type potstill alone, in this shell:", f". {shlex.quote(str(activate))}"]
    return commands


def _commands(
    recipe: Path, overrides: Sequence[str], outputs: Mapping[str, Path], steps: int | None
) -> Iterator[tuple[str, str]]:
    if "report" in outputs:
        yield "# read the report:", _opening(outputs["report"])
    if "student" in outputs:
        yield "# try the student (transformers alone loads it):", _trying(outputs["student"])
    again = [typed(), "run", shlex.quote(str(recipe)), *map(shlex.quote, overrides)]
    longer = _longer(setup.open_recipe(recipe, overrides).recipe, steps)
    if longer and not recipe.is_dir():
        what = "# change a value, here twice the training, and keep both runs:"
        yield what, " ".join([*again, *longer])
    yield "# go on after an interruption or a change; what is finished is not done again:", " ".join(again)


def _opening(report: Path) -> str:
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    if shutil.which(opener):
        return f"{opener} {shlex.quote(str(report))}"
    return f"python3 -m webbrowser {report.absolute().as_uri()}"


def _trying(student: Path) -> str:
    """A command that asks the student a held-out question, or another one; with or without a chat template."""
    chats = (student / "chat_template.jinja").is_file() or "chat_template" in _settings(student)
    samples = sorted(student.parent.glob("stages/*/samples.jsonl"))
    lines = ["from transformers import pipeline"]
    if chats and samples:
        lines[:0] = ["import json"]
        lines += [
            f'asked = json.loads(open({json.dumps(str(samples[0]))}).readline())["messages"]',
            'print(asked[-1]["content"], end="\\n\\n")',
        ]
    else:
        lines.append(f"asked = {json.dumps([{'role': 'user', 'content': PROMPT}] if chats else PROMPT)}")
    answer = '["generated_text"]' + ('[-1]["content"]' if chats else "")
    lines += [
        f'student = pipeline("text-generation", {json.dumps(str(student))})',
        f"print(student(asked, max_new_tokens=96)[0]{answer})",
    ]
    return f"{_python()} -c {shlex.quote(chr(10).join(lines))}"


def _settings(student: Path) -> str:
    file = student / "tokenizer_config.json"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _python() -> str:
    """The Python beside the command, as it must be typed."""
    if typed() == "potstill":
        return "python"
    return shlex.quote(str(Path(typed(quoted=False)).with_name("python")))


def _longer(recipe: Recipe, steps: int | None) -> list[str]:
    """Overrides for twice the training of the first stage that trains, under another name."""
    stages = [stage for stage in recipe.stages if isinstance(stage, Training)]
    if not stages:
        return []
    length = {"epochs": stages[0].epochs, "steps": stages[0].steps}
    if not any(length.values()):
        length["steps"] = steps if len(stages) == 1 else None
    return [f"name={recipe.name[:90]}-longer"] * any(length.values()) + [
        f"{stages[0].name}.{key}={2 * value:.15g}" for key, value in length.items() if value
    ]
