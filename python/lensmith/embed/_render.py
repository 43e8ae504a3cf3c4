"""From a row's prompt and response to the text that the tokenizer gets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

Message = dict[str, Any]

#: A text, and whether the tokenizer adds its special tokens (BOS, CLS): not where a chat template did.
Text = tuple[str, bool]

SPEAKER = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
FIELD = re.compile(r"\{(prompt|response)\}")
TEMPLATES = "None, 'chat', 'hh', a text with {prompt} and {response}, or a Jinja chat template"


class InvalidRow(ValueError):
    """A row that cannot be embedded: None, an empty response, another type, turns the template refuses."""


def messages_of(value: Any) -> list[Message]:
    """A conversation as a list of {"role", "content"}; fields that are None are left out.

    Takes a list of such dicts, one of them, or the dict of lists that some `datasets` features give.
    """
    if isinstance(value, Mapping) and isinstance(value.get("role"), (list, tuple)):
        value = [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]
    elif isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(f"expected text or a list of messages, found {type(value).__name__}")
    if not value:
        raise InvalidRow("expected text or messages, found an empty list")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            found = f"a dict with {list(message)}" if isinstance(message, Mapping) else type(message).__name__
            raise InvalidRow(f"message {i}: expected {{'role': ..., 'content': ...}}, found {found}")
        kept = {key: field for key, field in message.items() if field is not None}
        if not isinstance(kept.get("content"), str) and "tool_calls" not in kept:
            raise InvalidRow(
                f"message {i}: expected text as content, found {type(message.get('content')).__name__}"
            )
        messages.append(kept)
    return messages


def dialogue(text: str) -> list[Message]:
    """The turns of a dialogue in HH-RLHF's form: `\\n\\nHuman:` or `\\n\\nAssistant:` before each.

    Turns of one speaker in a row are joined. Empty where the text does not begin with a turn.
    """
    before, *parts = SPEAKER.split(text if text.startswith("\n\n") else "\n\n" + text.lstrip("\n"))
    if before.strip():
        return []
    turns: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = ROLES[speaker]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content.strip()}".strip()
        else:
            turns.append({"role": role, "content": content.strip()})
    return turns


def common_turns(a: Sequence[Message], b: Sequence[Message]) -> list[Message]:
    """The turns that two conversations begin with, without the last turn of either: their prompt."""
    shared = []
    for one, other in zip(a[:-1], b[:-1], strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


#: Stands before templates that ask for today's date: embeddings must not depend on the day they are made.
#: transformers takes no function from its caller, so this one is written in Jinja.
FIXED_DATE = (
    "{%- macro strftime_now(pattern) -%}{{ pattern"
    + "".join(
        f"|replace('%{sign}', '{datetime(2024, 7, 26).strftime('%' + sign)}')"
        for sign in ("-d", "-m", *"dmyYbBaAjHIMSpfzZ")
    )
    + " }}{%- endmacro -%}"
)


class Renderer:
    """Writes prompt and response as one text.

    `template` None joins plain strings as they are, and sends messages through the tokenizer's chat template.
    "chat" makes turns of plain strings too, "hh" takes them for HH-RLHF dialogues; a text with {prompt} and
    {response} is filled with plain strings, and a Jinja template (it contains {{ or {%) stands in for the
    tokenizer's.
    """

    def __init__(
        self, tokenizer: Any, template: str | None, template_args: Mapping[str, Any] | None, name: str
    ) -> None:
        self.tokenizer, self.name = tokenizer, name
        self.args = dict(template_args or {})
        self.jinja: str | None = None
        self._chat_template: str | None = None
        self.form: str | None = None
        if template is None or template in ("chat", "hh"):
            self.mode = template or "plain"
        elif "{{" in template or "{%" in template:
            self.mode, self.jinja = "chat", template
        elif "{response}" in template:
            self.mode, self.form = "form", template
        else:
            raise ValueError(f"template: expected {TEMPLATES}, found {template!r}")

    def identity(self) -> str:
        """What rows are written by: the mode, and a checksum of the template and its arguments."""
        chat = self.jinja or getattr(self.tokenizer, "chat_template", None)
        text = self.form or json.dumps([chat, self.args], sort_keys=True, default=str)
        return f"{self.mode} {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def render(self, prompt: Any, response: Any) -> Text:
        """The text of a response to a prompt; `prompt` None where the response is the whole conversation.

        Raises InvalidRow for what cannot be written, and ValueError where there is no chat template.
        """
        text, special = self._written(prompt, response)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidRow(
                    f"expected Unicode text, found {text[error.start]!r}, half of a surrogate pair"
                ) from None
        return text, special

    def _written(self, prompt: Any, response: Any) -> Text:
        plain = isinstance(response, str) and (prompt is None or isinstance(prompt, str))
        if isinstance(response, str) and not response.strip():
            raise InvalidRow("expected a response, found an empty text")
        if plain and self.mode == "plain":
            return (prompt or "") + response, True
        if plain and self.form is not None:
            if prompt is None and "{prompt}" in self.form:
                raise InvalidRow("template has {prompt}: expected a prompt column, found none")
            fields = {"prompt": prompt or "", "response": response}
            return FIELD.sub(lambda field: fields[field[1]], self.form), True
        if self.form is not None:
            raise InvalidRow("template is a text with {response}: expected plain strings, found messages")
        return self._chat(self._turns(prompt, response, plain)), False

    def _turns(self, prompt: Any, response: Any, plain: bool) -> list[Message]:
        if plain and self.mode == "hh":
            turns = dialogue((prompt or "") + response)
            if not turns or turns[-1]["role"] != "assistant":
                found = repr(((prompt or "") + response)[:40])
                raise InvalidRow(
                    f"template 'hh': expected '\\n\\nHuman: ...\\n\\nAssistant: ...', found {found}"
                )
        elif isinstance(response, str):
            if prompt is None:
                raise InvalidRow(
                    "template 'chat': expected messages, or a prompt column beside text, found text alone"
                )
            turns = [*self._prompt(prompt), {"role": "assistant", "content": response}]
        else:
            turns, before = messages_of(response), self._prompt(prompt)
            # Some data sets hold the prompt both in its own column and at the start of the conversation.
            if turns[: len(before)] != before:
                turns = before + turns
        last = turns[-1]
        if not (last.get("content") or "").strip() and "tool_calls" not in last:
            raise InvalidRow(f"expected a response, found an empty last message of {last['role']!r}")
        return turns

    def _prompt(self, prompt: Any) -> list[Message]:
        if prompt is None:
            return []
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages_of(prompt)

    def _chat(self, turns: list[Message]) -> str:
        if self.jinja is None and not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {self.name} has no chat template, which messages need: pass template= "
                "(--template) with a Jinja chat template, or give plain strings"
            )
        if self._chat_template is None:
            written = self.jinja or self.tokenizer.get_chat_template()
            self._chat_template = FIXED_DATE + written if "strftime_now" in written else written
        options = {"tokenize": False, "add_generation_prompt": False, "chat_template": self._chat_template}
        try:
            return str(self.tokenizer.apply_chat_template(turns, **options, **self.args))
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            if "Syntax" in type(error).__name__:
                raise ValueError(
                    f"template: expected a Jinja template, found an error in it: {error}"
                ) from None
            roles = [turn["role"] for turn in turns]
            raise InvalidRow(f"the chat template refuses the roles {roles}: {error}") from None
