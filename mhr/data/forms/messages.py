"""Conversations as OpenAI writes them, {"messages": [{"role": "user", "content": "..."}, ...]}, and ShareGPT,
{"conversations": [{"from": "human", "value": "..."}, ...]}.

The last assistant turn is the target. What comes before it is the input, in plain words as long as no chat template renders it:
a single user turn as it is; more turns each behind its speaker's name, and a system turn first as it is. Definitions of tools
stand beside the turns, under `tools`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mhr.data.forms.form import RowFault, Source, has, reads_rows
from mhr.errors import nearest

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Names of speakers as they occur, and what they are."""

_SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


@reads_rows("messages", "messages", lambda row, _: isinstance(row.get("messages"), list))
def read_messages(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    return conversation(row["messages"], tools_of(row))


@reads_rows("sharegpt", "conversations", lambda row, _: isinstance(row.get("conversations"), list))
def read_sharegpt(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    system = [{"role": "system", "content": row["system"]}] if has(row, "system") else []
    return conversation([*system, *row["conversations"]], tools_of(row))


def tools_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The definitions of tools beside a conversation: a list of objects, or such a list as JSON text. Raises RowFault for anything
    else, and for `functions`, an older way to write them that no template reads."""
    if row.get("functions"):
        raise RowFault(
            "has functions, which chat templates do not read: write them as tools, each as {'type': 'function', 'function': ...}"
        )
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            tools = [tools]
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowFault(f"has tools that are no list of objects: {row['tools']!r:.60}")
    return tuple(tools)


def conversation(turns: Sequence[Any], tools: tuple[Mapping[str, Any], ...] = ()) -> dict[str, Any]:
    """`input`, `targets`, `messages` and `tools` of a conversation. Raises RowFault where it is none that ends in an answer."""
    messages = [_turn(turn, number) for number, turn in enumerate(turns, 1)]
    if not messages:
        raise RowFault("the conversation is empty")
    for number, (before, now) in enumerate(zip(messages, messages[1:], strict=False), 2):
        if before["role"] == now["role"] == "assistant" and not before.get("tool_calls"):
            raise RowFault(
                f"turns {number - 1} and {number} are both the assistant's: expected another turn between them"
            )
        if now["role"] == "system":
            raise RowFault(f"turn {number} is a system turn: expected it first")
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()  # a question that nobody answered teaches nothing
    if not messages:
        raise RowFault("the conversation has no assistant turn: expected one, which is what is trained on")
    *before_it, answer = messages
    if not before_it or all(m["role"] == "system" for m in before_it):
        raise RowFault("the conversation has no user turn before the assistant's")
    text = render(before_it, tools)
    return {"input": text, "targets": answer["content"], "messages": tuple(messages), "tools": tools}


def render(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Turns in plain words, and the tools as JSON behind the system turn."""
    system = [m["content"] for m in messages if m["role"] == "system" and m["content"].strip()]
    system += [f"Tools: {json.dumps(list(tools), ensure_ascii=False)}"] if tools else []
    turns = [m for m in messages if m["role"] != "system"]
    if len(turns) == 1:
        return "\n\n".join([*system, turns[0]["content"]])
    spoken = [f"{_SPEAKERS[m['role']]}: {m['content']}" for m in turns]
    return "\n\n".join([*system, "\n".join([*spoken, "Assistant:"])])


def _turn(turn: Any, number: int) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise RowFault(f"turn {number} is {turn!r:.40}: expected an object with a role and its content")
    speaker = turn.get("role", turn.get("from"))
    role = ROLES.get(str(speaker).lower())
    if role is None:
        raise RowFault(f"turn {number} has the unknown role {speaker!r:.40}: {nearest(str(speaker), ROLES)}")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # parts of {"type": "text", "text": ...}
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise RowFault(f"turn {number} has parts that are no text, which no model here reads")
        content = "".join(part["text"] for part in content)
    if content is None and turn.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise RowFault(f"turn {number} has no content: expected a string, got {content!r:.40}")
    kept = {key: value for key, value in turn.items() if key not in ("role", "from", "content", "value")}
    return {"role": role, "content": content.strip(), **kept}
