"""Conversations as text and text as ids, with one tokenizer and one chat template.

Templated text is tokenised without special tokens, as transformers and servers do for chat: the template
alone decides about the start token.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import TemplateError

from potstill.data.row import SYSTEM, Message
from potstill.errors import DataError, ModelError

_PROBE = "potstill"
_USER: Message = {"role": "user", "content": "?"}
_TEMPLATE_FIX = "Name a Jinja file: data.template.file."


class Ending(NamedTuple):
    """What ends an assistant turn: its text, the ids to append, and the token that stops generation.

    `marked` says that the template prints the stop token.
    """

    text: str
    ids: tuple[int, ...]
    stop: int
    marked: bool


class Renderer:
    """A tokenizer with its chat template, or with `template_text` in its place.

    Raises:
        DataError: a template variable is reserved, or the template does not mention it.
    """

    def __init__(self, tokenizer: Any, template_text: str | None, template_kwargs: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.kwargs = dict(template_kwargs)
        self._template = template_text
        reserved = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
        for name in self.kwargs:
            if name in reserved:
                raise DataError(
                    "is set by potstill itself.", path=f"data.template.kwargs.{name}", fix="Remove it."
                )
            if not re.search(rf"\b{re.escape(name)}\b", self.template_text()):
                raise DataError(
                    "the chat template knows no such variable.",
                    path=f"data.template.kwargs.{name}",
                    fix="Check its spelling in the template.",
                )

    def template_text(self, tools: bool = False) -> str:
        """The template in use; some tokenizers have a second one for tools.

        Raises:
            DataError: there is none.
        """
        try:
            return self.tokenizer.get_chat_template(self._template, tools=[] if tools else None)
        except ValueError as error:
            raise DataError("the tokenizer has no chat template.", fix=_TEMPLATE_FIX) from error

    def text(self, messages: Sequence[Message], tools: Sequence[Any] = (), *, prompt: bool = False) -> str:
        """Render a conversation as text; `prompt` adds what opens the assistant's turn.

        Raises:
            DataError: there is no template, or it refuses the conversation.
        """
        text = self._render(messages, tools, prompt=prompt)
        return text + self._header if prompt else text

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] = (), *, prompt: bool = False) -> str:
        return self._apply(self._in_wanted_form(messages, tools), tools, prompt)

    def _in_wanted_form(self, messages: Sequence[Message], tools: Sequence[Any]) -> Sequence[Message]:
        """The messages with arguments of tool calls as JSON text, where the template wants them so.

        It does where it fails with objects, and where it prints them as Python does.
        """
        objects = [arguments for arguments in _arguments(messages) if arguments]
        if not objects:
            return messages
        try:
            text = self._apply(messages, tools)
        except DataError:
            pass
        else:
            if not any(str(arguments) in text for arguments in objects):
                return messages
        as_text = [_with_text_arguments(message) for message in messages]
        try:
            self._apply(as_text, tools)
        except DataError:
            return messages
        return as_text

    def _apply(self, messages: Sequence[Message], tools: Sequence[Any], prompt: bool = False) -> str:
        template = self.template_text(bool(tools))
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=template,
                add_generation_prompt=prompt,
                tokenize=False,
                **self.kwargs,
            )
        # A faulty template raises the error of whatever Python code it runs.
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise DataError(f"the chat template refuses it: {error}.", fix=_TEMPLATE_FIX) from error

    @cached_property
    def system_problems(self) -> dict[str, str]:
        """Why the template does not print system prompts, by role; without the roles that it prints."""
        problems = {}
        for role in SYSTEM:
            try:
                text = self._render([{"role": role, "content": _PROBE}, _USER], prompt=True)
            except DataError as error:
                problems[role] = f"refuses the role {role} ({error.message})"
            else:
                if _PROBE not in text:
                    problems[role] = f"prints nothing of the role {role}"
        return problems

    @cached_property
    def default_system(self) -> str:
        """The system prompt that the template adds to a conversation without one; "" for none."""
        try:
            text = self._render([{"role": "system", "content": _PROBE}, _USER])
        except DataError:
            return ""
        before, probe, after = text.partition(_PROBE)
        plain = self._render([_USER])
        same = probe and plain.startswith(before) and plain.endswith(after)
        return plain[len(before) : len(plain) - len(after)].strip() if same else ""

    def ids(self, text: str) -> list[int]:
        """Tokenise templated text, without special tokens.

        Raises:
            DataError: it begins with two start tokens.
        """
        ids = self._tokenised(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise DataError("the text begins with two start tokens.", fix="Remove one from the template.")
        return ids

    def document_ids(self, text: str) -> list[int]:
        """Tokenise plain text: one start token if the tokenizer adds one, the text, and one end token."""
        start = self.tokenizer.bos_token_id
        adds_start = start is not None and self.tokenizer("a", verbose=False)["input_ids"][:1] == [start]
        eos = self._eos()
        ids = self._tokenised(self.without_end(text))
        head = [start] if adds_start and ids[:1] != [start] else []
        return [*head, *ids, eos]

    def _tokenised(self, text: str) -> list[int]:
        try:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        # A tokenizer raises whatever its own code and its bindings do.
        except MemoryError:
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise DataError(
                f"the tokenizer refuses the text: {reason}.", fix="Repair the row, or set on_bad_row: skip."
            ) from error
        return ids

    def without_end(self, text: str) -> str:
        """The text without end tokens at its end: one is added to every answer and every document."""
        words = [word for word in self._end_words if word]
        while (bare := text.rstrip()).endswith(tuple(words)) and words:
            text = bare.removesuffix(next(word for word in words if bare.endswith(word)))
        return text

    @cached_property
    def _end_words(self) -> tuple[str, ...]:
        """How the tokens that end an answer or a document are written."""
        stops = {self.tokenizer.eos_token_id}
        with suppress(DataError, ModelError):
            stops.add(self.ending.stop)
        return tuple(str(self.tokenizer.convert_ids_to_tokens(stop)) for stop in stops if stop is not None)

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end token.", fix="Set eos_token in its configuration.")
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of all special tokens."""
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    @cached_property
    def _sample(self) -> str:
        """A conversation with `_PROBE` as its answer."""
        text = self._render([_USER, {"role": "assistant", "content": _PROBE}])
        if _PROBE not in text:
            raise DataError("the chat template does not print the assistant's answer.", fix=_TEMPLATE_FIX)
        return text

    @cached_property
    def _header(self) -> str:
        """What opens an assistant turn, for templates that ignore add_generation_prompt; else empty."""
        plain = self._render([_USER])
        if self._render([_USER], prompt=True) != plain or not self._sample.startswith(plain):
            return ""
        header = self._sample[len(plain) : self._sample.rindex(_PROBE)]
        return header if header.strip() else ""

    @cached_property
    def ending(self) -> Ending:
        """The end of an assistant turn; where the template prints no stop token, it is the end token."""
        text = self._sample[self._sample.rindex(_PROBE) + len(_PROBE) :]
        ids = self.ids(text)
        stop = next((i for i, token in enumerate(ids) if token in self.special), None)
        if stop is None:
            eos = self._eos()
            closing = self.ids(text.strip()) if text.strip() else []
            return Ending(text, (*closing, eos), eos, marked=False)
        words = text.partition(self.tokenizer.convert_ids_to_tokens(ids[stop]))[0].strip()
        # White space before a stop token is the template's layout; a model need not write it.
        return Ending(text, tuple(ids[0 if words else stop : stop + 1]), ids[stop], marked=True)

    def end_of_turn(self, ids: Sequence[int], start: int) -> int | None:
        """Find the end of a turn that starts here: after its last stop token, else its last special token."""
        for stops in ({self.ending.stop}, self.special):
            for index in range(len(ids) - 1, start - 1, -1):
                if ids[index] in stops:
                    return index + 1
        return None

    def marks(
        self, messages: Sequence[Message], tools: Sequence[Any] = ()
    ) -> tuple[list[int], list[tuple[int, int]], str] | None:
        """Tokenise a conversation into (ids, ranges inside {% generation %}, their text); None without marks."""
        template = self.template_text(bool(tools))
        if not self.tokenizer.is_fast or not re.search(r"\{%-?\s*generation\s*-?%\}", template):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            [list(self._in_wanted_form(messages, tools))],
            tools=list(tools) or None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **{**self.tokenizer.special_tokens_map, **self.kwargs},
        )
        (text,), (spans,) = rendered
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        inside = [any(a < end <= b for a, b in spans) for _, end in out["offset_mapping"]]
        runs = [
            list(run) for marked, run in itertools.groupby(range(len(inside)), inside.__getitem__) if marked
        ]
        if not runs:
            return None
        said = "".join(text[a:b] for a, b in spans)
        return out["input_ids"], [(run[0], run[-1] + 1) for run in runs], said


def _arguments(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The arguments of all tool calls that are objects."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    arguments = [call.get("function", call).get("arguments") for call in calls]
    return [value for value in arguments if isinstance(value, dict)]


def _with_text_arguments(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call.get("function", call))
        if isinstance(function.get("arguments"), dict):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}
