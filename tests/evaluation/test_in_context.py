"""In-context examples: which they are, where they stand, what fits, and that answers are those of naive prompts, one at a time."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import mhr
from mhr.data import Example, Task, TaskCollection
from mhr.data.chat_format import ChatFormat
from mhr.data.drawing import shot_order
from mhr.data.forms.messages import render
from mhr.data.mask_tokens import encode_masked
from mhr.data.masked import MASK, Piece, text_of_pieces
from mhr.errors import ConfigError, DataError
from mhr.evaluation import EvaluationResult, LoadedModel, evaluate
from mhr.evaluation.in_context import draw_in_context, fit_shots, prompt
from tests.evaluation.conftest import Ask
from tests.models import randomise, tiny_model
from tests.text_tokenizers import make_masked_tokenizer, make_tokenizer

TRAIN = [Example("alpha", f"w{i} w{i + 1}", (f"w{i + 2}",), id=f"t-{i}") for i in range(10, 20)]


def task(*test: Example, name: str = "alpha", choices: tuple[str, ...] = ()) -> Task:
    train = [dataclasses.replace(e, task=name, choices=choices, targets=choices[:1] or e.targets) for e in TRAIN]
    return Task(name, train, [dataclasses.replace(e, choices=choices) for e in test])


def chat(*turns: tuple[str, str], id: str = "") -> Example:
    messages = tuple({"role": role, "content": text} for role, text in turns)
    return Example("alpha", render(messages[:-1]), (turns[-1][1],), id=id, messages=messages)


def test_rows_of_text_get_text() -> None:
    question = Example("alpha", "1 + 1 =", ("2",), id="q")
    shots = [Example("alpha", "2 + 3 =", ("5", "five")), Example("alpha", "Q: 4 + 4\nA:\n", ("8",))]
    asked = prompt(question, shots)
    assert asked.input == "2 + 3 = 5\n\nQ: 4 + 4\nA:\n8\n\n1 + 1 ="
    assert dataclasses.replace(asked, input=question.input) == question
    assert asked.messages == ()
    assert prompt(question, []) is question


def test_conversations_get_turns() -> None:
    question = chat(("system", "own"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    shots = [chat(("system", "other"), ("user", "e"), ("assistant", "f")), Example("alpha", "g", ("h",))]
    asked = prompt(question, shots)
    found = [(turn["role"], turn["content"]) for turn in asked.messages]
    own = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    solved = [("user", "e"), ("assistant", "f"), ("user", "g"), ("assistant", "h")]
    assert found == [("system", "own"), *solved, *own]
    assert asked.input.endswith("User: c\nAssistant:")  # for models without a template
    assert asked.input.count("Assistant: f") == 1
    assert asked.targets == ("d",)
    plain = prompt(Example("alpha", "i", ("j",)), shots, rendered=True)
    assert [(turn["role"], turn["content"]) for turn in plain.messages] == [*solved, ("user", "i"), ("assistant", "j")]


TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("template", [None, "auto", "none"])
def test_a_model_and_its_bank_read_the_same_prompts_by_the_template(
    shots: int, template: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(i: int, *system: tuple[str, str]) -> Example:
        return chat(*system, ("user", f"is it {i}"), ("assistant", f"yes {i}"), id=f"{i}")

    train = [row(i) for i in range(2, 5)]
    tests = [row(0, ("system", "be good")), row(1)]
    plain = Example("beta", "so", ("no",), id="p")
    solved = [Example("beta", f"{i}", ("yes",), id=f"b-{i}") for i in (7, 8)]
    made = TaskCollection([Task("alpha", train, tests), Task("beta", solved, [plain])])
    tokenizer = make_tokenizer("bytes")
    tokenizer.chat_template = TEMPLATE
    read = []
    for routed in (False, True):
        model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
        if routed:
            randomise(mhr.attach(model, mhr.AdapterConfig(n_heads=4, n_skills=3, rank=2), ["alpha", "beta"]), size=1.0)
        loaded = LoadedModel(model, tokenizer, "causal", "tiny", chat=ChatFormat(template))
        with monkeypatch.context() as patch:
            seen = prompts_read(loaded, patch)
            result = run(loaded, made, shots=shots, batch_size=1)
        read.append(seen)
        rendered = {None: "auto", "auto": "auto", "none": None}[template]
        assert result.settings["template"] == rendered
    assert read[0] == read[1]
    texts = {tokenizer.decode(ids[0]) for ids, _ in read[0]}
    turns = [(f"is it {s.id}", f"yes {s.id}") for s in shot_order(train, "alpha", 0)[:shots]]
    pairs = [(s.input, "yes") for s in shot_order(solved, "beta", 0)[:shots]]

    def as_chat(question: str, before: list[tuple[str, str]], system: str = "") -> str:
        told = f"<s>system: {system}</s>" if system else ""
        told += "".join(f"<s>user: {a}</s><s>assistant: {b}</s>" for a, b in before)
        return f"{told}<s>user: {question}</s><s>assistant:"  # the space is of the answer

    def as_text(question: str, before: list[tuple[str, str]], system: str = "") -> str:
        if not before:
            return "<s>" + "\n\n".join(filter(None, [system, question]))
        spoken = "\n".join(f"User: {a}\nAssistant: {b}" for a, b in before)
        return "<s>" + "\n\n".join(filter(None, [system, f"{spoken}\nUser: {question}\nAssistant:"]))

    conversation = as_text if template == "none" else as_chat
    assert {conversation("is it 0", turns, "be good"), conversation("is it 1", turns)} <= texts
    text = "<s>" + "".join(f"{a} {b}\n\n" for a, b in pairs) + "so"
    assert (as_chat("so", pairs) if template == "auto" else text) in texts


def test_shots_are_drawn_by_seed_and_are_never_the_question() -> None:
    tests = [Example("alpha", "w1", ("w2",)), *TRAIN, Example("alpha", TRAIN[3].input, ("w2",), id="the same input")]
    one = task()
    drawn = draw_in_context(one, tests, 4, seed=1)
    order = shot_order(TRAIN, "alpha", 1)
    for example, own in zip(tests, drawn, strict=True):
        assert list(own) == [shot for shot in order if shot.input != example.input][:4]
    assert draw_in_context(Task("alpha", TRAIN[::-1]), tests, 4, seed=1) == drawn
    assert draw_in_context(one, tests, 4, seed=2) != drawn
    assert [own[:2] for own in drawn] == draw_in_context(one, tests, 2, seed=1)
    assert draw_in_context(Task("alpha"), tests, 0) == [()] * len(tests)
    assert len(draw_in_context(one, tests[:1], 10)[0]) == 10
    for example, found, most in ((tests[0], 10, 11), (TRAIN[0], 9, 10)):
        with pytest.raises(
            DataError, match=f"has 10 training rows, of which {found} are other ones.*--shots {found} or"
        ):
            draw_in_context(one, [example], most)


def test_what_does_not_fit_is_dropped_whole(ask: Ask) -> None:
    loaded = ask("llama")
    question = Example("alpha", "w1 w2 w3", ("w4",))
    shots = tuple(Example("alpha", " ".join(["w5"] * n), ("w6",), id=str(n)) for n in (3, 9, 1, 2))
    tokens = [len(loaded.tokenizer(prompt(question, shots[:n]).input)["input_ids"]) for n in range(5)]
    for room in range(2, tokens[-1] + 2):
        (found,) = fit_shots(loaded, [question], [shots], room, 4)
        kept: tuple[Example, ...] = ()
        for shot in shots:  # naively, one after the other
            if len(loaded.tokenizer(prompt(question, (*kept, shot)).input)["input_ids"]) <= room:
                kept += (shot,)
        assert found.shots == kept, room
        assert found.example == prompt(question, kept)
    assert [s.id for s in fit_shots(loaded, [question], [shots], tokens[1] + 3, 4)[0].shots] == ["3", "1"]


def test_dropped_shots_are_counted(ask: Ask) -> None:
    tests = [
        Example("alpha", "w1 w2", ("w3",), id="short"),
        Example("alpha", " ".join(["w1"] * 12), ("w3",), id="long"),
    ]
    result = run(ask("llama"), TaskCollection([task(*tests)]), shots=2, max_input_length=13)
    assert result.shots == {"of": 4, "dropped": 2, "tasks": {"alpha": 2}}
    assert [len(p.shots) for p in result.predictions] == [2, 0]
    assert [p.input for p in result.predictions] == [e.input for e in tests]
    assert result.truncated["inputs"] == 0
    assert run(ask("llama"), TaskCollection([task(*tests)])).shots == {"of": 2 * 0, "dropped": 0, "tasks": {}}


def test_there_is_room_for_shots(ask: Ask) -> None:
    loaded = dataclasses.replace(ask("t5"), trained_with=(6, 4))
    tests = TaskCollection([task(Example("alpha", "w1 w2 w3", ("w4",)))])
    for shots, room in ((0, 6), (3, 4 * 6 + 3 * 4)):
        result = evaluate(loaded, tests, shots=shots, progress=False)
        assert (result.settings["max_input_length"], result.shots["dropped"]) == (room, 0)
    assert run(ask("gpt2"), tests, shots=3).settings["max_input_length"] == 64 - 5  # all its positions


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_answers_are_those_of_naive_prompts(ask: Ask, name: str) -> None:
    loaded = ask(name)
    tests = [
        Example(n, " ".join(["w1", "w2", "w3", "w4"][: i + 1]), ("w4",)) for n in ("alpha", "beta") for i in range(3)
    ]
    words = task(*tests[:3])
    ranks = task(*tests[3:], name="beta", choices=("w4", "w5 w6", "w7"))
    result = run(loaded, TaskCollection([words, ranks]), shots=3, seed=5)
    answers = {p.input + p.task: p for p in result.predictions}
    for one in (words, ranks):
        shots = shot_order(one.train, one.name, 5)[:3]
        for example in one.test:
            solved = " ".join(f"{shot.input} {shot.targets[0]}" for shot in shots)
            ids = loaded.tokenizer(f"{solved} {example.input}")["input_ids"]
            found = answers[example.input + example.task]
            assert found.shots == tuple(shot.id for shot in shots)
            if example.choices:
                scores = [naive_score(loaded, ids, choice, one.name) for choice in example.choices]
                assert found.scores == pytest.approx(scores, abs=1e-4)
            else:
                assert found.answer == naive_answer(loaded, ids, one.name)
    assert len({p.answer for p in result.predictions}) > 1


def test_a_model_and_its_bank_are_asked_the_same(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = [Example("alpha", " ".join(["w1"] * i), ("w3",), id=str(i)) for i in (3, 1, 2)]
    made = TaskCollection([task(*tests), task(*tests, name="beta", choices=("w4", "w5"))])
    asked = []
    for routed in (False, True):
        loaded = ask("llama", routed)
        with monkeypatch.context() as patch:
            asked.append(prompts_read(loaded, patch))
            run(loaded, made, shots=2, batch_size=2)
    assert asked[0] == asked[1]
    assert len(asked[0]) > 4


def test_an_encoder_is_refused(ask: Ask) -> None:
    made = TaskCollection([task(Example("alpha", "w1", ("w4",)), choices=("w4", "w5"))])
    assert run(ask("bert"), made).tasks["alpha"]["n"] == 1
    with pytest.raises(ConfigError, match="the tiny bert is an encoder.*leave shots out"):
        run(ask("bert"), made, shots=1)


def test_seed_without_a_draw_is_refused(ask: Ask) -> None:
    made = TaskCollection([task(Example("alpha", "w1", ("w4",)))])
    with pytest.raises(ConfigError, match="seed is 3, but inference is 'average' and there are no shots"):
        run(ask("llama"), made, seed=3)
    assert run(ask("llama"), made, seed=3, shots=1).settings["seed"] == 3


def prompts_read(loaded: LoadedModel, patch: pytest.MonkeyPatch) -> list[Any]:
    """A list that gets the tokens and masks of all that the model reads from its beginning."""
    seen: list[Any] = []
    forward = loaded.model.forward

    def spy(input_ids: Tensor, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            mask = kwargs.get("attention_mask")  # none where no row is padded
            seen.append((input_ids.tolist(), None if mask is None else mask.tolist()))
        return forward(input_ids=input_ids, **kwargs)

    patch.setattr(loaded.model, "forward", functools.wraps(forward)(spy))
    return seen


def run(loaded: LoadedModel, made: TaskCollection, **settings: Any) -> EvaluationResult:
    return evaluate(loaded, made, max_target_length=5, progress=False, **settings)


def naive_answer(loaded: LoadedModel, prompt: list[int], task: str) -> str:
    said = [loaded.model.config.decoder_start_token_id] if loaded.kind == "seq2seq" else list(prompt)
    start = len(said)
    for _ in range(5):
        token = int(logits_of(loaded, prompt, said, task)[-1].argmax())
        if token == loaded.tokenizer.eos_token_id:
            break
        said.append(token)
    return loaded.tokenizer.decode(said[start:], skip_special_tokens=True).strip()


def naive_score(loaded: LoadedModel, prompt: list[int], choice: str, task: str) -> float:
    """The mean log-likelihood of a choice's tokens, as they are trained."""
    if loaded.kind == "seq2seq":
        answer = loaded.tokenizer(text_target=choice)["input_ids"]
    else:
        answer = [*loaded.tokenizer(choice, add_special_tokens=False)["input_ids"], loaded.tokenizer.eos_token_id]
    said = [loaded.model.config.decoder_start_token_id] if loaded.kind == "seq2seq" else list(prompt)
    logits = logits_of(loaded, prompt, [*said, *answer[:-1]], task)[-len(answer) :]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).mean())


def logits_of(loaded: LoadedModel, prompt: list[int], said: list[int], task: str) -> Tensor:
    row = torch.tensor([said])
    inputs = (
        {"input_ids": torch.tensor([prompt]), "decoder_input_ids": row}
        if loaded.kind == "seq2seq"
        else {"input_ids": row}
    )
    with torch.no_grad(), loaded.routing([task]):
        return loaded.model(**inputs).logits[0]


def masked(text: str, target: str) -> Example:
    pieces = (Piece(text, "field"), Piece(" It was "), MASK, Piece("."))
    return Example("films", text_of_pieces(pieces), (target,), ("great", "bad"), text, pieces=pieces)


FILMS = [masked(f"film {'x ' * i}", word) for i, word in enumerate(["great", "bad", "great", "bad"])]


def test_shots_of_a_prompt_with_a_mask_have_their_words_in_its_place() -> None:
    asked = prompt(masked("my film", "bad"), FILMS[:2])
    assert asked.input == "film  It was great.\n\nfilm x  It was bad.\n\nmy film It was {mask}."
    assert asked.targets == ("bad",)
    tokenizer = make_masked_tokenizer("bert", "film my it was great bad . x")
    rows = encode_masked(tokenizer, [asked], 64)
    assert " ".join(tokenizer.convert_ids_to_tokens(rows.ids[0])) == (
        "<s> film it was great . </s> film x it was bad . </s> my film it was <mask> . </s>"
    )
    assert tokenizer.convert_ids_to_tokens(rows.ids[0])[rows.places[0]] == "<mask>"


def test_shots_beside_a_mask_that_do_not_fit_are_left_out_whole() -> None:
    tokenizer = make_masked_tokenizer("bert", "film my it was great bad . x")
    loaded = LoadedModel(tiny_model("bert-masked", vocab_size=len(tokenizer)), tokenizer, "masked", "tiny")
    questions = [masked("my film", "bad"), masked("my film " + "x " * 40, "bad")]
    found = fit_shots(loaded, questions, [tuple(FILMS[:3])] * 2, 23, 8)
    assert [len(one.shots) for one in found] == [2, 0]
    assert found[1].example.input == questions[1].input


def test_scores_at_a_mask_with_shots_are_those_of_naive_prompts() -> None:
    tokenizer = make_masked_tokenizer("bert", "film my it was great bad . x")
    model = tiny_model("bert-masked", vocab_size=len(tokenizer))
    loaded = LoadedModel(model, tokenizer, "masked", "tiny")
    films = Task("films", FILMS, [masked("my film", "bad"), masked("my x film", "great")])
    result = evaluate(loaded, TaskCollection([films]), shots=2, seed=3, batch_size=2, progress=False)
    for question, found in zip(films.test, result.predictions, strict=True):
        shots = shot_order(FILMS, "films", 3)[:2]
        text = "</s>".join([*(s.input.replace("{mask}", s.targets[0]) for s in shots), question.input])
        row = tokenizer(text.replace("{mask}", "<mask>"), return_tensors="pt")
        logits = model(**row).logits[row["input_ids"] == tokenizer.mask_token_id][0]
        words = tokenizer.convert_tokens_to_ids(["great", "bad"])
        assert found.scores == pytest.approx(logits[words].tolist(), rel=1e-4, abs=1e-5)
        assert found.shots == tuple(s.id for s in shots)
