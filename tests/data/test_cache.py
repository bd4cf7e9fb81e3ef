"""Rows that are encoded once: what is read back is what the collator encodes, and what decides it decides the file."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mhr.data import Example
from mhr.data import cache as caching
from mhr.data.cache import CacheError, encode_ahead, forking_tokenizers, pays, rows_key
from mhr.data.chat_format import ChatFormat
from mhr.data.choice_collators import CausalChoicesCollator, Seq2SeqChoicesCollator
from mhr.data.collators import CausalCollator, RankingCollator, Seq2SeqCollator
from mhr.data.tokens import TokenRow
from mhr.errors import DataError
from mhr.files import cache_folder
from tests.text_tokenizers import make_mbart_tokenizer, make_tokenizer

KINDS = [CausalCollator, Seq2SeqCollator]
EXAMPLES = [Example(f"t{i % 3}", " ".join(["good"] * (i % 5) + ["film"]), (("yes", "no")[i % 2],)) for i in range(23)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stored rows."""
    monkeypatch.setenv("MHR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def collator(word_tokenizer: Any) -> CausalCollator:
    return CausalCollator(word_tokenizer, 4, 2)


def rows_of(data: caching.TokenDataset) -> list[TokenRow]:
    return [row for _, row in data.__getitems__(range(len(data)))]


def fail(*args: Any) -> Any:
    raise AssertionError("it was tokenised again")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_those_of_the_collator(
    kind: Any, stored: bool, workers: int, word_tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "CHUNK", 4)
    collator, told = kind(word_tokenizer, 4, 2), []
    data = encode_ahead(collator, EXAMPLES, stored=stored, workers=workers, told=told.append)
    expected = collator.encode_rows(EXAMPLES)
    assert rows_of(data) == expected
    assert any(row.cut for row in expected)
    assert not all(row.cut for row in expected)
    assert data[5] == (EXAMPLES[5].task, expected[5])
    assert data.lengths.tolist() == [len(row.ids) + len(row.labels) for row in expected]
    assert told == [4, 4, 4, 4, 4, 3]
    assert folder.exists() == stored
    assert os.environ.get("TOKENIZERS_PARALLELISM") is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_stored_rows_is_that_of_the_examples(kind: Any, word_tokenizer: Any) -> None:
    ours, theirs = kind(word_tokenizer, 4, 2), kind(word_tokenizer, 4, 2)
    items = encode_ahead(ours, EXAMPLES, stored=True).__getitems__([7, 2, 4])
    tasks, rows = zip(*items, strict=True)
    found, expected = ours.collate_rows(rows, tasks), theirs([EXAMPLES[i] for i in (7, 2, 4)])
    assert found.keys() == expected.keys()
    assert found["task_ids"] == expected["task_ids"]
    assert all(torch.equal(found[name], expected[name]) for name in ("input_ids", "attention_mask", "labels"))
    assert ours.truncation.to_json() == theirs.truncation.to_json()
    assert ours.truncation.cut.total() == 1


def test_the_second_time_nothing_is_tokenised(collator: CausalCollator, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rows_of(encode_ahead(collator, EXAMPLES, stored=True))
    monkeypatch.setattr(CausalCollator, "encode_rows", fail)
    with pytest.raises(AssertionError, match="tokenised again"):
        encode_ahead(collator, EXAMPLES[1:], stored=True)
    assert rows_of(encode_ahead(collator, EXAMPLES, stored=True, told=fail)) == first


def longer(collator: CausalCollator) -> CausalCollator:
    return CausalCollator(collator.tokenizer, 5, 2)


def other_target(collator: CausalCollator) -> CausalCollator:
    return CausalCollator(collator.tokenizer, 4, 3)


def other_kind(collator: CausalCollator) -> Any:
    return Seq2SeqCollator(collator.tokenizer, 4, 2)


def other_words(collator: CausalCollator) -> CausalCollator:
    tokenizer = copy.deepcopy(collator.tokenizer)
    assert tokenizer.add_tokens(["very"]) == 1
    return CausalCollator(tokenizer, 4, 2)


def other_end(collator: CausalCollator) -> CausalCollator:
    tokenizer = copy.deepcopy(collator.tokenizer)
    tokenizer.eos_token = tokenizer.pad_token
    return CausalCollator(tokenizer, 4, 2)


def other_template(collator: CausalCollator) -> CausalCollator:
    tokenizer = copy.deepcopy(collator.tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    return CausalCollator(tokenizer, 4, 2)


@pytest.mark.parametrize("change", [longer, other_target, other_kind, other_words, other_end, other_template])
def test_another_tokenizer_or_setting_is_another_file(change: Callable[..., Any], collator: CausalCollator) -> None:
    assert rows_key(change(collator), EXAMPLES) != rows_key(collator, EXAMPLES)


@pytest.mark.parametrize(
    "changes",
    [
        {"input": "another"},
        {"targets": ("no",)},
        {"targets": ("yes", "no")},
        {"task": "t9"},
        {"messages": ({"role": "user", "content": "film"},)},
        {"tools": ({"type": "function"},)},
    ],
)
def test_other_content_is_another_file(changes: dict[str, Any], collator: CausalCollator) -> None:
    assert rows_key(collator, [replace(EXAMPLES[0], **changes), *EXAMPLES[1:]]) != rows_key(collator, EXAMPLES)
    assert rows_key(collator, EXAMPLES[::-1]) != rows_key(collator, EXAMPLES) == rows_key(collator, list(EXAMPLES))


def test_another_chat_format_is_another_file(word_tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "turns.jinja"
    keys = []
    for text, format in [("film", {}), ("good", {}), ("good", {"train_on": "all"}), ("good", {"system": "a film"})]:
        file.write_text(text + " {% for m in messages %}{{ m.content }} {% endfor %}")
        chat = ChatFormat(str(file), **format)
        keys.append(rows_key(CausalCollator(word_tokenizer, 8, 8, chat), EXAMPLES))
        assert rows_key(CausalCollator(word_tokenizer, 8, 8, chat), EXAMPLES) == keys[-1]
    assert len(set(keys)) == 4


def test_every_field_of_a_row_is_stored(collator: CausalCollator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert caching.SCHEMA.names == [field.name for field in fields(TokenRow)]
    row = TokenRow([1, 2], [-100, 2], True, True, True)
    monkeypatch.setattr(CausalCollator, "encode_rows", lambda self, examples: [row for _ in examples])
    assert rows_of(encode_ahead(collator, EXAMPLES, stored=True)) == [row] * len(EXAMPLES)


def test_other_code_is_another_file(collator: CausalCollator, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_key(collator, EXAMPLES)
    monkeypatch.setattr(caching, "_code", lambda: "changed")
    assert rows_key(collator, EXAMPLES) != before


def test_the_key_does_not_depend_on_what_the_tokenizer_was_last_asked() -> None:
    collator = Seq2SeqCollator(make_tokenizer("bytes"), 4, 2)
    before = rows_key(collator, EXAMPLES)
    collator.tokenizer(["a film", "film"], truncation=True, max_length=3, padding="max_length")
    assert rows_key(collator, EXAMPLES) == before


def test_another_language_of_targets_is_another_file() -> None:
    collator = Seq2SeqCollator(make_mbart_tokenizer(), 4, 4)
    before = rows_key(collator, EXAMPLES)
    collator.tokenizer.tgt_lang = "de_DE"
    assert rows_key(collator, EXAMPLES) != before
    collator.tokenizer.tgt_lang = "ro_RO"
    assert rows_key(collator, EXAMPLES) == before


def cut(arrow: Path, told: Path) -> None:
    arrow.write_bytes(arrow.read_bytes()[:-20])


def flip(arrow: Path, told: Path) -> None:
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 1
    arrow.write_bytes(content)


def lose_rows(arrow: Path, told: Path) -> None:
    arrow.unlink()


def lose_digest(arrow: Path, told: Path) -> None:
    told.unlink()


def spoil_digest(arrow: Path, told: Path) -> None:
    told.write_text('{"rows": 2')


def miscount(arrow: Path, told: Path) -> None:
    told.write_text(json.dumps(json.loads(told.read_text()) | {"rows": 2}))


@pytest.mark.parametrize("damage", [cut, flip, lose_rows, lose_digest, spoil_digest, miscount])
def test_what_is_damaged_is_made_again(
    damage: Callable[[Path, Path], None], collator: CausalCollator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rows_of(encode_ahead(collator, EXAMPLES, stored=True))
    told, arrow = sorted(folder.iterdir(), key=lambda path: path.suffix, reverse=True)
    before = arrow.read_bytes()
    damage(arrow, told)
    seen: list[int] = []
    assert rows_of(encode_ahead(collator, EXAMPLES, stored=True, told=seen.append)) == first
    assert seen == [len(EXAMPLES)]
    assert arrow.read_bytes() == before
    monkeypatch.setattr(CausalCollator, "encode_rows", fail)
    assert rows_of(encode_ahead(collator, EXAMPLES, stored=True)) == first


def fill(collator: CausalCollator, together: Any, found: Any) -> None:
    together.wait()
    found.put(rows_of(encode_ahead(collator, EXAMPLES, stored=True)))


def test_processes_may_fill_it_at_the_same_time(collator: CausalCollator, folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    together, found = context.Barrier(3), context.Queue()
    with forking_tokenizers():
        workers = [context.Process(target=fill, args=(collator, together, found)) for _ in range(3)]
        for worker in workers:
            worker.start()
        results = [found.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.join()
    assert results == [collator.encode_rows(EXAMPLES)] * 3
    assert sorted(path.suffix for path in folder.iterdir()) == [".arrow", ".json"]
    assert rows_of(encode_ahead(collator, EXAMPLES, stored=True, told=fail)) == results[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_example_that_cannot_be_encoded_leaves_no_file(
    workers: int, word_tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "CHUNK", 4)
    bad = [*EXAMPLES, Example("t", "half \ud800 a pair", ("yes",))]
    with pytest.raises(DataError, match="holds half of a surrogate pair"):
        encode_ahead(Seq2SeqCollator(word_tokenizer, 4, 2), bad, stored=True, workers=workers)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_told_in_one_line(
    collator: CausalCollator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MHR_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        CacheError, match=r"cannot write .*file/tokens: Not a directory; set MHR_CACHE .*data.cache"
    ) as told:
        encode_ahead(collator, EXAMPLES, stored=True)
    assert "\n" not in str(told.value)


def test_the_cache_folder_is_the_user_s_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MHR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mhr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "mhr"


def test_it_pays_where_there_are_many_examples_and_all_are_drawn() -> None:
    assert pays(10_000, 10_000)
    assert not pays(9_999, 10**6)
    assert not pays(10**6, 10**5)


def test_which_collators_encode_row_by_row() -> None:
    by_rows = (CausalCollator, Seq2SeqCollator)
    every = (*by_rows, RankingCollator, CausalChoicesCollator, Seq2SeqChoicesCollator)
    assert [kind for kind in every if kind.by_rows] == list(by_rows)
