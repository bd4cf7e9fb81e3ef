"""Stop strings: answers end before them, wherever tokens fall, and generation ends with them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from mhr.data import Example, Task, TaskCollection
from mhr.errors import ConfigError
from mhr.evaluation import evaluate, generate_answers
from mhr.evaluation.stops import Stops
from tests.evaluation.conftest import Ask
from tests.text_tokenizers import FAMILIES, make_tokenizer


@pytest.mark.parametrize("family", [*FAMILIES, "byt5"])
@pytest.mark.parametrize("stops", [["so"], ["o? y", "maybe"], ["z"], ["</s>"], ["?"]])
def test_an_answer_ends_before_its_first_stop(family: str, stops: list[str]) -> None:
    tokenizer: PreTrainedTokenizerBase = ByT5Tokenizer() if family == "byt5" else make_tokenizer(family)
    row = tokenizer("is it so? yes no maybe", add_special_tokens=False)["input_ids"]
    row += [tokenizer.eos_token_id, *tokenizer("so it is", add_special_tokens=False)["input_ids"]]
    found = Stops(tokenizer, stops)
    whole = tokenizer.decode(row, skip_special_tokens=False)
    places = [whole.find(stop) for stop in stops if stop in whole]
    expected = whole[: min(places)] if places else tokenizer.decode(row, skip_special_tokens=True)
    assert found.texts([row]) == [expected.strip().replace("</s>", "")]
    # Asked at each token, the first that completes a stop string is told; at others nothing is.
    ends = [found.ends(row[:n]) for n in range(1, len(row) + 1)]
    holds = [
        any(stop in tokenizer.decode(row[:n], skip_special_tokens=False) for stop in stops)
        for n in range(1, len(row) + 1)
    ]
    assert (ends.index(True) if any(ends) else None) == (holds.index(True) if any(holds) else None)
    assert any(ends) == bool(places)


def test_what_a_template_puts_before_answers_is_no_stop() -> None:
    tokenizer = ByT5Tokenizer()
    found = Stops(tokenizer, ["\n\n"], lead="<t>\n\n</t>\n\n")
    row = tokenizer("<t>\n\n</t>\n\nyes\n\nno", add_special_tokens=False)["input_ids"]
    assert found.texts([row]) == ["<t>\n\n</t>\n\nyes"]
    assert [n for n in range(len(row) + 1) if found.ends(row[:n])][0] == len(row) - 2
    assert found.texts([row[-7:]]) == ["yes"]


@pytest.mark.parametrize("n_beams", [1, 3])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_generation_ends_early_and_says_the_same(
    ask: Ask, examples: list[Example], name: str, n_beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = ask(name)
    free = [g.text for g in generate_answers(loaded, examples, max_new_tokens=12, n_beams=n_beams)]
    stop = max(free, key=len).split()[2]
    rows: list[Any] = []
    generate = loaded.model.generate

    def spy(**kwargs: Any) -> Any:
        rows.append(generate(**kwargs))
        return rows[-1]

    monkeypatch.setattr(loaded.model, "generate", spy)
    together = generate_answers(loaded, examples, max_new_tokens=12, n_beams=n_beams, stop=[stop, "never"])
    alone = [
        generate_answers(loaded, [e], max_new_tokens=12, n_beams=n_beams, stop=[stop, "never"])[0] for e in examples
    ]
    assert together == alone
    assert not any(stop in g.text for g in together)
    if n_beams == 1:
        assert [g.text for g in together] == [text.partition(stop)[0].strip() for text in free]
        assert min(row.shape[1] for row in rows) < max(row.shape[1] for row in rows)
        place = free.index(max(free, key=len))
        ids = loaded.tokenizer(examples[place].input)["input_ids"]
        said = rows[1 + place][0, 1 if name == "t5" else len(ids) :]
        assert stop in loaded.tokenizer.decode(said)
        assert stop not in loaded.tokenizer.decode(said[:-1])


def test_a_stop_that_begins_in_the_prompt_ends_nothing(ask: Ask, examples: list[Example]) -> None:
    loaded, example = ask("llama"), examples[5]
    (free,) = generate_answers(loaded, [example], max_new_tokens=8)
    border = f"{example.input.split()[-1]} {free.text.split()[0]}"
    assert generate_answers(loaded, [example], max_new_tokens=8, stop=[border, example.input]) == [free]


def test_what_cannot_be_is_refused(ask: Ask, examples: list[Example]) -> None:
    with pytest.raises(ConfigError, match="stop has an empty string"):
        generate_answers(ask("t5"), examples, stop=["a", ""])
    choices = TaskCollection([Task("alpha", [], [e for e in examples if e.task == "alpha"])])
    for said, text in (
        ({"stop": ["\n"]}, r"stop is \['\\n'\], but all answers are ranked"),
        ({"cache": "static"}, "cache is 'static', but all answers are ranked"),
        ({"cache": "small"}, "cache is 'small', expected one of dynamic, static"),
    ):
        with pytest.raises(ConfigError, match=text):
            evaluate(ask("t5"), choices, progress=False, **said)  # type: ignore[arg-type]
