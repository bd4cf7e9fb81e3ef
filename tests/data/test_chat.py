"""Conversations as tokens by a chat template, against a naive reference: texts rendered, encoded and compared by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from mhr.data import Example
from mhr.data.chat_format import ChatFormat
from mhr.data.collators import IGNORED, CausalCollator, RankingCollator, Seq2SeqCollator
from mhr.data.truncation import untrained_lines
from mhr.errors import ConfigError, DataError
from tests.chat_templates import (
    CHATML,
    DATED,
    DEFINED,
    GEMMA,
    INST,
    OPENS,
    REWRITES,
    TEMPLATES,
    TOOLS,
    make_chat_tokenizer,
)

Turns = list[dict[str, Any]]

ONE: Turns = [{"role": "user", "content": "is it so?"}, {"role": "assistant", "content": "yes"}]
TWO: Turns = [*ONE, {"role": "user", "content": "the film was"}, {"role": "assistant", "content": "good maybe"}]
SYSTEM: Turns = [{"role": "system", "content": "a b c"}]
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot|>",
    "gemma": "<|eot|>",
    "inst": "</s>",
    "bare": "</s>",
    "opens": "<|im_end|>",
}


def chat(turns: Turns, task: str = "t", **more: Any) -> Example:
    said = "; ".join(t["content"] for t in turns[:-1])
    return Example(task, said, (turns[-1]["content"],), id="x-1", messages=tuple(turns), **more)


def collator(template: str, lengths: tuple[int, int] = (512, 64), **settings: Any) -> CausalCollator:
    return CausalCollator(make_chat_tokenizer(template), *lengths, ChatFormat(**settings))


def trained(tokenizer: PreTrainedTokenizerFast, row: Any) -> list[str]:
    """The spans of a row that are trained on, as text."""
    spans: list[list[int]] = [[]]
    for token, label in zip(row.ids, row.labels, strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            spans.append([])
        else:
            spans[-1].append(token)
    return [tokenizer.decode(span) for span in spans if span]


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("turns", [ONE, TWO, SYSTEM + TWO], ids=["one", "two", "system"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_turn_and_its_end_are_trained_on(name: str, turns: Turns, offsets: bool):
    tokenizer = make_chat_tokenizer(TEMPLATES[name], offsets=offsets)
    if name == "gemma" and turns[0]["role"] == "system":
        return
    made = CausalCollator(tokenizer)
    (row,) = made.encode_rows([chat(turns)])
    # The reference: the text of the whole, up to the end of the answer, as one string.
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    begin = text.rindex(turns[-1]["content"])
    end = begin + len(turns[-1]["content"])
    tail = text[end:].partition(ENDS[name])
    whole = text[:end] + ("</s>" if name == "bare" else tail[0] + tail[1])
    assert row.ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    (said,) = trained(tokenizer, row)
    assert said.strip().replace(" </s>", "</s>") == turns[-1]["content"] + ENDS[name]
    assert row.labels[-1] == row.ids[-1] == tokenizer.convert_tokens_to_ids(ENDS[name])
    assert not row.cut
    assert not row.cut_target
    # What generation reads is what stands before it in training, and ranking scores what is trained on.
    (prompt,) = made.encode_inputs([chat(turns)]).ids
    assert row.ids[: len(prompt)] == prompt
    assert set(row.labels[: len(prompt)]) == {IGNORED}
    assert IGNORED not in row.labels[len(prompt) :]
    prompts, answers = made.encode_answers([chat(turns)], [[turns[-1]["content"], "no"]])
    assert prompts.ids == [prompt]
    assert answers.ids[0] == row.ids[len(prompt) :]
    assert answers.ids[1][-1] == row.ids[-1]
    assert made.answer_ends([chat(turns)]) == [row.ids[-1]]
    if name not in ("opens", "bare"):
        opened = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        assert prompt == tokenizer(opened, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_all_turns_are_trained_on_where_asked_for(name: str, offsets: bool):
    tokenizer = make_chat_tokenizer(TEMPLATES[name], offsets=offsets)
    (row,) = CausalCollator(tokenizer, chat=ChatFormat(train_on="all")).encode_rows([chat(TWO)])
    (last,) = CausalCollator(tokenizer).encode_rows([chat(TWO)])
    assert row.ids == last.ids
    first, second = trained(tokenizer, row)
    end = ENDS[name]
    assert second.strip().replace(" </s>", "</s>") == "good maybe" + end
    assert first.strip().replace(" </s>", "</s>") == ("yes" if name == "bare" else "yes" + end)
    assert not row.last_only


def test_a_template_that_rewrites_earlier_turns_trains_the_last_alone_and_is_counted():
    made = collator(REWRITES, train_on="all")
    examples = [chat(TWO), chat(ONE, "u"), chat(TWO)]
    rows = made.encode_rows(examples)
    assert [row.last_only for row in rows] == [True, False, True]
    for row, turns in zip(rows, (TWO, ONE, TWO), strict=True):
        (said,) = trained(made.tokenizer, row)
        assert said == "<think>\n\n</think>\n\n" + turns[-1]["content"] + "<|im_end|>"
    made.collate_rows(rows, ["t", "u", "t"])
    (line,) = untrained_lines(made.truncation.describe())
    assert line.startswith("2 rows are trained on in their last turn alone")
    assert line.endswith("(t 2)")
    assert made.answer_text(examples[0], "<think>\n\n</think>\n\ngood") == "good"


def test_reasoning_of_the_data_is_trained_on():
    made = collator(REWRITES)
    turns = [ONE[0], {"role": "assistant", "content": "<think>\nmaybe\n</think>\n\nyes"}]
    (said,) = trained(made.tokenizer, made.encode_rows([chat(turns)])[0])
    assert "maybe" in said
    assert said.endswith("yes<|im_end|>")


def test_rows_that_are_no_conversation_are_plain_unless_a_template_is_named():
    plain = Example("t", "is it so?", ("yes",), ("yes", "no"))
    tokenizer = make_chat_tokenizer()
    unset, text = CausalCollator(tokenizer), CausalCollator(tokenizer, chat=ChatFormat("none"))
    assert unset.encode_rows([plain]) == text.encode_rows([plain])
    assert unset.answer_ends([plain]) == [tokenizer.eos_token_id]
    assert text.encode_rows([chat(ONE)]) == text.encode_rows([plain])
    for named in (ChatFormat("auto"), ChatFormat(CHATML)):
        assert CausalCollator(tokenizer, chat=named).encode_rows([plain]) == unset.encode_rows([chat(ONE)])
    mixed = unset.encode_answers([plain, chat(ONE), plain], [["no"], ["yes", "no"], ["maybe", "yes", "no"]])
    for i, example in enumerate((plain, chat(ONE), plain)):
        own = unset.encode_answers([example], [[["no"], ["yes", "no"], ["maybe", "yes", "no"]][i]])
        assert mixed[0].ids[i] == own[0].ids[0]
        assert mixed[1].ids[(0, 1, 3)[i] : (1, 3, 6)[i]] == own[1].ids
    assert len(unset.answer_ends([plain, chat(ONE)])) == 2
    assert [r.ids for r in unset.encode_rows([plain, chat(ONE)])] == [
        unset.encode_rows([e])[0].ids for e in (plain, chat(ONE))
    ]


def test_a_system_prompt_is_given_to_rows_without_one():
    made = collator(CHATML, system="a b c")
    assert made.encode_rows([chat(ONE), chat(SYSTEM + ONE)]) == collator(CHATML).encode_rows([chat(SYSTEM + ONE)] * 2)
    other = [{"role": "system", "content": "other"}, *ONE]
    assert made.encode_rows([chat(other)]) == collator(CHATML).encode_rows([chat(other)])


def test_tool_turns_are_rendered_by_the_template():
    turns = [
        ONE[0],
        {"role": "assistant", "content": "", "tool_calls": [{"name": "look"}]},
        {"role": "tool", "content": "film"},
        {"role": "assistant", "content": "good"},
    ]
    made = collator(TOOLS, train_on="all")
    (row,) = made.encode_rows([chat(turns)])
    assert trained(made.tokenizer, row) == ["<call>look</call><|im_end|>", "good<|im_end|>"]
    assert "<|im_start|>tool\nfilm<|im_end|>" in made.tokenizer.decode(row.ids)


LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def test_tools_are_given_to_the_template_and_survive_truncation():
    for limit, turns in ((512, TWO), (150, long_turns(8))):
        made = collator(DEFINED, (limit, 64))
        (row,) = made.encode_rows([chat(turns[limit == 150 :], tools=(LOOK,))])
        text = made.tokenizer.decode(row.ids)
        assert json.loads(text.removeprefix("<|im_start|>system\n").partition("<|im_end|>")[0]) == [LOOK]
        assert trained(made.tokenizer, row) == [turns[-1]["content"] + "<|im_end|>"]
        assert (
            made.encode_inputs([chat(turns[limit == 150 :], tools=(LOOK,))]).ids[0]
            == row.ids[: row.labels.count(IGNORED)]
        )
        assert row.cut == (limit == 150)


def test_tools_that_a_template_leaves_out_are_refused():
    made = collator(CHATML)
    for call in (made.encode_rows, made.encode_inputs):
        with pytest.raises(
            DataError, match="example 'x-1' of task 't' has tools, which .* does not write: name a template"
        ):
            call([chat(ONE, tools=(LOOK,))])


def test_the_clock_of_templates_stands_still():
    """Rows are stored and a bank is evaluated on other days than it is trained on."""
    llama = "{% if not date_string is defined %}{% set date_string = 'none' %}{% endif %}Today: {{ date_string }}\n"
    nested = '{% macro day() %}{% if strftime_now is defined %}{{ strftime_now("%d %B %Y") }}{% endif %}{% endmacro %}'
    for template, date in (
        (DATED, "26 July 2024"),
        (llama + CHATML, "26 Jul 2024"),
        (nested + "Today: {{ day() }}\n" + CHATML, "26 July 2024"),
    ):
        made = collator(template)
        (row,) = made.encode_rows([chat(ONE)])
        assert made.tokenizer.decode(row.ids).startswith(f"Today: {date}\n<|im_start|>user\n")
        assert trained(made.tokenizer, row) == ["yes<|im_end|>"]
    assert collator(CHATML).chat_rows().template.text == CHATML


def long_turns(n: int) -> Turns:
    return [*SYSTEM, *(t for i in range(n) for t in ({"role": "user", "content": f"{i} is it so?"}, ONE[1]))]


@pytest.mark.parametrize("train_on", ["last", "all"])
@pytest.mark.parametrize("name", ["chatml", "llama3", "inst", "bare"])
def test_whole_earlier_turns_go_before_the_question_is_cut(name: str, train_on: str):
    turns = long_turns(5)
    if name == "inst":
        turns = turns[1:]
    full = collator(TEMPLATES[name], train_on=train_on)
    (whole,) = full.encode_inputs([chat(turns)]).ids
    for dropped in range(1, 5):
        fewer = turns[:-2][: len(turns) - 10] + turns[len(turns) - 10 + 2 * dropped :]
        expected = full.encode_rows([chat(fewer)])[0]
        limit = len(full.encode_inputs([chat(fewer)]).ids[0])
        made = collator(TEMPLATES[name], (limit, 64), train_on=train_on)
        (row,) = made.encode_rows([chat(turns)])
        assert (row.ids, row.labels) == (expected.ids, expected.labels)
        assert row.cut
        assert limit < len(whole)
        assert made.encode_inputs([chat(turns)]).ids == [row.ids[:limit]]


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "inst"])
def test_a_long_question_keeps_its_beginning_and_its_end_and_all_that_is_around_it(name: str):
    question = "begin " + "maybe yes no " * 60 + "finish"
    turns = [{"role": "user", "content": question}, ONE[1]]
    turns = turns if name in ("gemma", "inst") else SYSTEM + turns
    made = collator(TEMPLATES[name], (60, 8))
    (row,) = made.encode_rows([chat(turns)])
    short = made.tokenizer.decode(row.ids)
    whole = made.tokenizer.apply_chat_template(turns, tokenize=False)
    assert short.startswith(whole[: whole.index("begin") + 5])
    assert short.endswith((whole[whole.index("finish") :]).rpartition(ENDS[name])[0] + ENDS[name])
    (prompt,) = made.encode_inputs([chat(turns)]).ids
    assert len(prompt) == 60
    assert row.cut
    made.collate_rows([row], ["t"])
    assert made.truncation.describe()["tasks"] == {"t": {"inputs": {"cut": 1, "of": 1}}}


def test_a_long_answer_keeps_its_end():
    turns = [ONE[0], {"role": "assistant", "content": "yes no maybe " * 20}]
    made = collator(CHATML, (64, 5))
    (row,) = made.encode_rows([chat(turns)])
    (prompt,) = made.encode_inputs([chat(turns)]).ids
    assert len(row.ids) == len(prompt) + 5
    assert trained(made.tokenizer, row)[0].endswith("<|im_end|>")
    assert (row.cut, row.cut_target) == (False, True)


def test_rows_without_a_trained_token_are_counted_by_task():
    from mhr.data.tokens import TokenRow

    made = collator(CHATML)
    made.collate_rows([TokenRow([1, 2], [IGNORED, IGNORED]), TokenRow([1, 2], [IGNORED, 2])], ["a", "b"])
    assert untrained_lines(made.truncation.describe()) == ["1 rows have no token that is trained on (a 1)"]


def test_the_end_token_is_trained_on_where_rows_are_padded_with_it():
    tokenizer = make_chat_tokenizer()
    tokenizer.pad_token = "<|im_end|>"
    batch = CausalCollator(tokenizer)([chat(ONE), chat(TWO)])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        last = int(mask.sum()) - 1
        assert ids[last] == labels[last] == end
        assert (labels[last + 1 :] == IGNORED).all()


@pytest.mark.parametrize(
    ("template", "settings", "said"),
    [
        (None, {}, "has no chat template, expected one .*--chat-template chatml, or a file .*--chat-template none"),
        (None, {"template": "auto"}, "has no chat template"),
        (CHATML, {"template": "chatlm"}, "chat_template is 'chatlm', expected auto, none, a name or a file .*'chatml'"),
        (CHATML, {"template": "absent.jinja"}, "cannot read the chat template absent.jinja: No such file"),
        (CHATML, {"template": "{% for m in messages %}\n{{ m }"}, "does not parse, line 2"),
        (CHATML, {"template": "{{ 'hello' }}"}, "leaves out what the assistant says"),
        (CHATML, {"train_on": "first"}, "train_on is 'first', expected last or all"),
        (CHATML, {"template": "none", "system": "s"}, "system is 's', but chat_template is 'none'"),
    ],
)
def test_formats_that_cannot_be_are_told(template: str | None, settings: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said) as raised:
        CausalCollator(make_chat_tokenizer(template), chat=ChatFormat(**settings)).encode_rows([chat(ONE)])
    assert "\n" not in str(raised.value)


def test_rows_that_cannot_be_are_told():
    with pytest.raises(
        DataError, match=r"example 'x-1' of task 't': .* refuses .*system, user.*System role not supported"
    ):
        collator(GEMMA).encode_rows([chat(SYSTEM + ONE)])
    with pytest.raises(
        DataError, match=r"example 'x-1' of task 't': its system turn .* leaves no room for the question in 8"
    ):
        collator(CHATML, (8, 8)).encode_rows([chat(SYSTEM + ONE)])
    with pytest.raises(
        ConfigError, match=r"max_target_length is 4, but .* puts \d+ tokens .*leaves no room for it: raise"
    ):
        collator(REWRITES, (64, 4)).encode_rows([chat(ONE)])
    tokenizer = make_chat_tokenizer(INST)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="has no end token, expected an eos_token"):
        CausalCollator(tokenizer).encode_rows([chat(ONE)])


def test_templates_are_of_decoders():
    for kind in (Seq2SeqCollator, RankingCollator):
        with pytest.raises(ConfigError, match="are for decoders"):
            kind(make_chat_tokenizer(), chat=ChatFormat("chatml"))
        kind(make_chat_tokenizer(), chat=ChatFormat("none"))


def test_a_tokenizer_without_a_bos_has_conversations_as_they_are_rendered():
    tokenizer = make_chat_tokenizer()
    tokenizer.bos_token = None
    (row,) = CausalCollator(tokenizer).encode_rows([chat(ONE)])
    assert row.ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_the_packaged_template_is_chatml():
    turns = SYSTEM + TWO
    named = CausalCollator(make_chat_tokenizer(OPENS), chat=ChatFormat("chatml"))
    assert named.encode_rows([chat(turns)]) == collator(CHATML).encode_rows([chat(turns)])
