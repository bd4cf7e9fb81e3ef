"""Files -> bytes and text: .gz and .zst unpacked, UTF-8 with or without a byte-order mark, UTF-16 and UTF-32 with one."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path


class FileFault(ValueError):
    """What is wrong with a file as a whole, and on which line (0 where no line applies)."""

    def __init__(self, line: int, message: str):
        super().__init__(message)
        self.line = line


def _unpack_gz(packed: bytes) -> bytes:
    try:
        return gzip.decompress(packed)
    except (EOFError, zlib.error) as error:
        raise FileFault(0, f"the gzip file is truncated or damaged: {error}") from None
    except gzip.BadGzipFile as error:
        raise FileFault(0, f"is not a gzip file: {error}") from None


def _unpack_zst(packed: bytes) -> bytes:
    try:
        import pyarrow
    except ImportError:
        raise FileFault(0, ".zst files need the package pyarrow: pip install pyarrow") from None
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(packed), "zstd") as stream:
            return bytes(stream.read())
    except (pyarrow.ArrowException, OSError) as error:
        raise FileFault(0, f"the zstd file is truncated or damaged: {str(error).splitlines()[0]}") from None


PACKINGS: dict[str, Callable[[bytes], bytes]] = {".gz": _unpack_gz, ".zst": _unpack_zst}
"""Endings of packed files."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def bare_name(path: Path) -> str:
    """A file's name without the ending of its packing, lower case: "Rows.JSONL.gz" -> "rows.jsonl"."""
    name = path.name.lower()
    return next((name.removesuffix(ending) for ending in PACKINGS if name.endswith(ending)), name)


def read_bytes(path: Path) -> bytes:
    """What a file holds, unpacked. Raises FileFault."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileFault(0, f"cannot be read: {error.strerror}") from None
    unpack = PACKINGS.get(path.suffix.lower())
    return unpack(content) if unpack else content


def read_text(path: Path) -> str:
    """The text of a file, unpacked. Raises FileFault for bytes that are no text, naming their line."""
    content = read_bytes(path)
    mark, encoding = next(((m, e) for m, e in _MARKS if content.startswith(m)), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding, "ignore")
        message = f"byte {error.start + len(mark)} is not {encoding.upper()}"
        raise FileFault(before.count("\n") + 1, f"{message}: save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise FileFault(
            line, "holds a zero character, as UTF-16 without a byte-order mark does: save the file as UTF-8"
        )
    return text
