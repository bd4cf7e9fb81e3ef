"""Examples as rows of tokens, encoded once: held in memory, or in a file that later runs take.

`KEY.arrow` under `tokens/` of the cache folder (`mhr.files.cache_folder`) holds rows as `datasets` maps them into memory, and
`KEY.json` its digest. The key is a digest of all that decides the rows: every example, the tokenizer's files, the collator and
its settings, the code of this package and the versions of the libraries. What is damaged is made again. Files appear whole, so that
processes may make the same one at once: both hold the same rows.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mhr.data.collators import CausalCollator, Seq2SeqCollator
from mhr.data.example import Example
from mhr.data.special_tokens import PROBE
from mhr.data.tokens import TokenRow
from mhr.errors import MhrError
from mhr.files import cache_folder, make_folder, read_json, write_json_atomically, writing_file

CHUNK = 1000
"""Examples that a process encodes at a time."""
ENOUGH = 10_000
"""Examples from which on a file of them is worth it by itself."""
PARALLELISM = "TOKENIZERS_PARALLELISM"

RowCollator = CausalCollator | Seq2SeqCollator
Tell = Callable[[int], None]
TYPES = {"list[int]": pa.list_(pa.int32()), "bool": pa.bool_()}
SCHEMA = pa.schema([(field.name, TYPES[str(field.type)]) for field in fields(TokenRow)])


class CacheError(MhrError):
    """The cache folder cannot be written."""


class TokenDataset(Dataset[tuple[str, TokenRow]]):
    """Examples by their tokens: (task, row) of each, in the order of the examples.

    lengths  int64 [N], tokens of each row and of its labels together
    """

    def __init__(self, tasks: Sequence[str], table: datasets.Dataset):
        self.tasks = list(tasks)
        self.table = table
        self.lengths = _lengths(table, "ids") + _lengths(table, "labels")

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> tuple[str, TokenRow]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[str, TokenRow]]:
        """What a data loader asks for: a whole batch at once."""
        found = self.table[list(indices)]
        rows = map(TokenRow, *(found[name] for name in SCHEMA.names))
        return list(zip([self.tasks[i] for i in indices], rows, strict=True))


def encode_ahead(
    collator: RowCollator,
    examples: Sequence[Example],
    *,
    stored: bool,
    workers: int = 0,
    told: Tell | None = None,
) -> TokenDataset:
    """The rows of `collator.encode_rows` for all examples.

    stored   take them from the cache folder, and put them there where they are missing or damaged; otherwise they stay in memory
    workers  processes that encode; 0: one for each core where there are enough examples
    told     called with the number of examples that are done since the last call

    Raises CacheError where the cache folder cannot be written, and what `encode_rows` raises.
    """
    tasks = [example.task for example in examples]
    if not stored:
        sink = pa.BufferOutputStream()
        _write(collator, examples, sink, workers, told)
        return TokenDataset(tasks, datasets.Dataset.from_buffer(sink.getvalue()))
    path = cache_folder() / "tokens" / f"{rows_key(collator, examples)}.arrow"
    found = _read(path, len(examples))
    if found is None:
        with _filling():
            make_folder(path.parent)
            with writing_file(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
                _write(collator, examples, sink, workers, told)
            # What lies there now is whole, be it ours or that of a process that came to its end after us.
            found = datasets.Dataset.from_file(str(path))
            write_json_atomically(path.with_suffix(".json"), {"rows": len(found), "sha256": _digest(path)})
    return TokenDataset(tasks, found)


def pays(examples: int, draws: int) -> bool:
    """Whether a run with so many draws had better encode its examples ahead and keep them: not where it sees a part of them, nor
    where there are few, which are encoded in seconds."""
    return draws >= examples >= ENOUGH


def rows_key(collator: RowCollator, examples: Sequence[Example]) -> str:
    """A digest of all that decides the rows of the examples."""
    settings = {k: v for k, v in vars(collator).items() if k not in ("tokenizer", "truncation") and k[0] != "_"}
    if isinstance(collator, CausalCollator) and collator.chat.chosen:  # a name or file, of which the text counts
        settings["chat_template"] = collator.chat_rows().template.text
    kind = f"{type(collator).__module__}.{type(collator).__qualname__}"
    found = hashlib.sha256(
        repr((_code(), kind, sorted(settings.items()), tokenizer_digest(collator.tokenizer))).encode()
    )
    for example in examples:
        found.update(b"\n" + repr(example).encode("utf-8", "surrogatepass"))  # of one line, and with its messages
    return found.hexdigest()[:40]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the files that the tokenizer would be saved as, and of the frames that it has been set to put around texts."""
    if tokenizer.is_fast:  # what an earlier call has asked for is no part of the tokenizer, every call sets it
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    found = hashlib.sha256(type(tokenizer).__qualname__.encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                found.update(f"\n{file.relative_to(folder)} {_digest(file)}".encode())
    found.update(repr([tokenizer(PROBE)["input_ids"], tokenizer(text_target=PROBE)["input_ids"]]).encode())
    return found.hexdigest()


@contextmanager
def forking_tokenizers() -> Iterator[None]:
    """Processes that begin in the block tokenise with one thread each: the threads of the process that they are forked from are
    not there, and waiting for them would take for ever."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLELISM]
        else:
            os.environ[PARALLELISM] = before


@contextmanager
def _filling() -> Iterator[None]:
    try:
        yield
    except MhrError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise CacheError(
            f"{str(error).partition(';')[0]}; set MHR_CACHE to a folder that can be written, or data.cache to false"
        ) from error


def _write(collator: RowCollator, examples: Sequence[Example], sink: Any, workers: int, told: Tell | None) -> None:
    """Encode the examples, in their order, as an Arrow stream."""
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        for rows in _encoded(collator, examples, workers):
            columns = [pa.array([getattr(row, f.name) for row in rows], f.type) for f in SCHEMA]
            stream.write_batch(pa.record_batch(columns, schema=SCHEMA))
            if told is not None:
                told(len(rows))


def _encoded(collator: RowCollator, examples: Sequence[Example], workers: int) -> Iterator[list[TokenRow]]:
    spans = [range(start, min(start + CHUNK, len(examples))) for start in range(0, len(examples), CHUNK)]
    processes = min(workers or _cores(), len(spans))
    if processes < 2:
        yield from (collator.encode_rows([examples[i] for i in span]) for span in spans)
        return
    with forking_tokenizers(), multiprocessing.Pool(processes, _begin, (collator, examples)) as pool:
        yield from pool.imap(_encode, spans)


_work: tuple[RowCollator, Sequence[Example]]


def _begin(collator: RowCollator, examples: Sequence[Example]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that waits for this one, and it this one
    _work = collator, examples


def _encode(span: range) -> list[TokenRow]:
    collator, examples = _work
    return collator.encode_rows([examples[i] for i in span])


def _cores() -> int:
    """Cores that this process may use, shared with those that torchrun started beside it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def _read(path: Path, rows: int) -> datasets.Dataset | None:
    """What the cache holds; None where that is nothing, or is damaged."""
    try:
        told = read_json(path.with_suffix(".json"))
        if told != {"rows": rows, "sha256": _digest(path)}:
            return None
        return datasets.Dataset.from_file(str(path))
    except (MhrError, OSError):
        return None


def _lengths(table: datasets.Dataset, column: str) -> np.ndarray:
    return pc.list_value_length(table.data.column(column)).to_numpy().astype(np.int64)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _code() -> str:
    """A digest of what encodes: this package, and the libraries under it by their versions."""
    folder = Path(__file__).parent
    found = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        found.update(f"\n{file.relative_to(folder)} {_digest(file)}".encode())
    versions = {name: metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")}
    return found.hexdigest() + json.dumps(versions)
