"""Conversations as text, by one chat template."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any

from potstill.data import trial
from potstill.data.row import SYSTEM, Message
from potstill.errors import DataError

_PROBE = "potstill"
_CLOCK = "strftime_now"  # the function by which templates ask for the date
_TWO_CLOCKS = datetime(2001, 2, 3, 4, 5, 6), datetime(2012, 11, 30, 17, 48, 59)
_TOOL = {"type": "function", "function": {"name": _PROBE, "parameters": {"type": "object", "properties": {}}}}
_USER: Message = {"role": "user", "content": "?"}
_TEMPLATE_FIX = "Name a Jinja file: data.template.file."


class ChatTemplate:
    """A tokenizer's chat template, or `text` in its place, with its variables.

    Args:
        now: what a template that prints the date or the time is told, whenever it renders.

    Raises:
        DataError: a template variable is reserved, or the template does not mention it.
    """

    def __init__(
        self,
        tokenizer: Any,
        text: str | None,
        kwargs: Mapping[str, Any],
        now: datetime | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._now = now or datetime.now()
        self.kwargs = dict(kwargs)
        self._text = text
        reserved = {"messages", _CLOCK, *inspect.signature(tokenizer.apply_chat_template).parameters}
        for name in self.kwargs:
            if name in reserved:
                raise DataError(
                    "is set by potstill itself.", path=f"data.template.kwargs.{name}", fix="Remove it."
                )
            if not re.search(rf"\b{re.escape(name)}\b", self.source()):
                raise DataError(
                    "the chat template knows no such variable.",
                    path=f"data.template.kwargs.{name}",
                    fix="Check its spelling in the template.",
                )

    def source(self, tools: bool = False) -> str:
        """The template in use; some tokenizers have a second one for tools.

        Raises:
            DataError: there is none.
        """
        try:
            return self._tokenizer.get_chat_template(self._text, tools=[] if tools else None)
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

    def _apply(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any],
        prompt: bool = False,
        now: datetime | None = None,
    ) -> str:
        template = self.source(bool(tools))
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=template,
                add_generation_prompt=prompt,
                tokenize=False,
                **self.kwargs,
                **self._clock(now or self._now),
            )
        except Exception as error:
            raise _refused(error) from error

    @property
    def _variables(self) -> dict[str, Any]:
        """What a template is given beside messages and tools."""
        return {**self._tokenizer.special_tokens_map, **self.kwargs}

    def _clock(self, now: datetime) -> dict[str, Any]:
        """The template's clock, which stands still; nothing for templates without one."""
        texts = self.source(), self.source(tools=True)
        return {_CLOCK: now.strftime} if any(_CLOCK in text for text in texts) else {}

    @cached_property
    def dated(self) -> bool:
        """Whether the template prints the date or the time: two clocks give two texts."""
        system: Message = {"role": "system", "content": _PROBE}
        for messages, tools in ([_USER], []), ([system, _USER], []), ([_USER], [_TOOL]):
            with suppress(DataError):
                first, second = (self._apply(messages, tools, True, clock) for clock in _TWO_CLOCKS)
                if first != second:
                    return True
        return False

    def require_bounded(self, where: str) -> None:
        """Refuse a template that never ends or needs too much memory; raises as `trial.require_bounded` does."""
        for tools in (False, True):
            trial.require_bounded(self.source(tools), self._variables, where)

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

    @cached_property
    def _sample(self) -> str:
        """A conversation with `_PROBE` as its answer."""
        text = self._render([_USER, {"role": "assistant", "content": _PROBE}])
        if _PROBE not in text:
            raise DataError("the chat template does not print the assistant's answer.", fix=_TEMPLATE_FIX)
        return text

    @property
    def closing(self) -> str:
        """What the template prints behind an answer."""
        return self._sample[self._sample.rindex(_PROBE) + len(_PROBE) :]

    @cached_property
    def _header(self) -> str:
        """What opens an assistant turn, for templates that ignore add_generation_prompt; else empty."""
        plain = self._render([_USER])
        if self._render([_USER], prompt=True) != plain or not self._sample.startswith(plain):
            return ""
        header = self._sample[len(plain) : self._sample.rindex(_PROBE)]
        return header if header.strip() else ""

    def marked(
        self, messages: Sequence[Message], tools: Sequence[Any]
    ) -> tuple[str, list[tuple[int, int]]] | None:
        """Render a conversation with the ranges inside {% generation %}; None for a template without marks."""
        template = self.source(bool(tools))
        if not re.search(r"\{%-?\s*generation\s*-?%\}", template):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        wanted = list(self._in_wanted_form(messages, tools))
        try:
            rendered: Any = render_jinja_template(
                [wanted],
                tools=list(tools) or None,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self._variables,
                **self._clock(self._now),
            )
        except Exception as error:
            raise _refused(error) from error
        (text,), (spans,) = rendered
        return text, spans


def _refused(error: Exception) -> DataError:
    """What a template raised: the error of whatever Python code it runs."""
    if isinstance(error, MemoryError):
        return DataError("the chat template needs more memory than there is.", fix=_TEMPLATE_FIX)
    return DataError(
        f"the chat template refuses it: {str(error) or type(error).__name__}.", fix=_TEMPLATE_FIX
    )


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
