"""A chat template bound to a tokenizer: conversations as text, what opens an answer, and the token that ends one.

What a template writes around an answer is found by rendering a sample: PROMPT | lead answer tail. The prompt is what it writes
where an answer is to follow, as far as it also stands before an answer that is given (some write there the beginning of a
reasoning that is not). The lead is what it puts before every answer, which counts as the answer's. The end is the first special
token of the tail; a template without one has the tokenizer's end token put behind the last answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from os.path import commonprefix
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from mhr.data.chat_format import (
    ENDINGS,
    OWN,
    ChatFormat,
    check_syntax,
    is_file,
    is_text,
    packaged_chat_templates,
    packaged_text,
    read_file,
)
from mhr.data.special_tokens import end_token
from mhr.errors import ConfigError, DataError, nearest

Turn = Mapping[str, Any]

STAND_IN = "\ue000"
"""A text that no template writes by itself."""

DATE = datetime(2024, 7, 26)
"""Templates that tell the date would make other prompts every day; this is the one that Llama-3's take without a clock."""
DIRECTIVES = [f"%{letter}" for letter in "aAbBcdHIjmMpSUwWxXyYZ%"]
"""Of `strftime`."""


class ChatTemplate:
    """One template and the tokenizer that reads what it writes.

    lead  what it writes between a prompt and every answer; tail: what it writes behind an answer at the end of a conversation
    end   the token that ends an answer; its_own: whether the template writes it, or it is the tokenizer's

    Raises ConfigError for a template that does not parse or that leaves answers out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, origin: str):
        check_syntax(text, origin)
        self.tokenizer, self.text, self.origin = tokenizer, stopped(text), origin
        question = [{"role": "user", "content": STAND_IN}]
        opened = self.render(question, opened=True)
        whole = self.render([*question, {"role": "assistant", "content": STAND_IN * 2}])
        before, found, self.tail = whole.rpartition(STAND_IN * 2)
        if not found:
            raise ConfigError(f"{origin} leaves out what the assistant says: expected one that renders every turn")
        self._surplus = len(opened) - len(commonprefix([opened, before]))
        self.lead = before[len(opened) - self._surplus :]
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        behind = tokenizer(self.tail, add_special_tokens=False)["input_ids"] if self.tail else []
        own = next((token for token in behind if token in special), None)
        self.its_own = own is not None
        self.end = end_token(tokenizer) if own is None else int(own)

    def __repr__(self) -> str:
        return f"ChatTemplate({self.text!r})"

    def render(self, turns: Sequence[Turn], tools: Sequence[Turn] = (), *, opened: bool = False) -> str:
        """The text of a conversation; `opened`: as it stands before an answer that is to follow.

        Raises DataError with the template's own words where it refuses the conversation.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=opened,
                tools=[dict(tool) for tool in tools] or None,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            roles = ", ".join(str(turn["role"]) for turn in turns)
            said = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{self.origin} refuses a conversation of {roles}: {said:.200}") from None
        assert isinstance(text, str)
        return text

    def prompt(self, turns: Sequence[Turn], tools: Sequence[Turn] = ()) -> str:
        """The text that an answer to these turns follows."""
        text = self.render(turns, tools, opened=True)
        return text[: len(text) - self._surplus]

    def answered(self, turns: Sequence[Turn], tools: Sequence[Turn] = ()) -> str:
        """The text of a conversation whose last turn is an answer, up to its end."""
        text = self.render(turns, tools)
        return text if self.its_own else text.removesuffix(self.tail)

    def lead_tokens(self) -> int:
        """How many tokens stand before every answer."""
        return len(self.tokenizer(self.lead, add_special_tokens=False)["input_ids"]) if self.lead.strip() else 0


def stopped(text: str) -> str:
    """A template whose clock stands at DATE: what transformers lets it ask for the date, and what it may be given as the date, are
    defined before its first line."""
    macro = "".join(f" | replace('{name}', '{DATE.strftime(name)}')" for name in DIRECTIVES)
    clock = {
        "strftime_now": f"{{%- macro strftime_now(format) -%}}{{{{ format{macro} }}}}{{%- endmacro -%}}",
        "date_string": f"{{%- set date_string = '{DATE.strftime('%d %b %Y')}' -%}}",
    }
    return "".join(jinja for name, jinja in clock.items() if name in text) + text


def find_chat_template(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> ChatTemplate:
    """The template that a format asks for. Raises ConfigError where there is none, naming the ways on."""
    name = chat.template
    own = tokenizer.chat_template
    named: dict[str, str] = own if isinstance(own, dict) else {"default": own} if own else {}
    whose = f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"
    if name in (None, OWN):
        if "default" not in named:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template, expected one for "
                f"conversations: give one (--chat-template {packaged_chat_templates()[0]}, or a file of Jinja), or train on "
                "plain text (--chat-template none)"
            )
        return ChatTemplate(tokenizer, named["default"], whose)
    assert name is not None
    if is_text(name):
        return ChatTemplate(tokenizer, name, "the chat template")
    if is_file(name):
        return ChatTemplate(tokenizer, read_file(name), f"the chat template {name}")
    if name in named:
        return ChatTemplate(tokenizer, named[name], f"{whose} ({name})")
    known = packaged_chat_templates()
    if name not in known:
        raise ConfigError(
            f"chat_template is {name!r}, expected auto, none, a name or a file ({', '.join(ENDINGS)}): "
            f"{nearest(name, [OWN, 'none', *named, *known])}"
        )
    return ChatTemplate(tokenizer, packaged_text(name), f"the chat template {name}")
