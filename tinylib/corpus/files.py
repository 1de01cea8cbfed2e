"""Documents in files, `.txt`, `.jsonl` and `.parquet`: found in a folder, read one by one, in bounded memory."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NoReturn

SUFFIXES = (".txt", ".jsonl", ".parquet")
_PACKED = {".gz": "gzip", ".zst": "zstd"}
_TXT_CHARS, _TXT_MOST = 4_000, 100_000
_ROWS = 64    # at once: they may be whole books


@dataclass(frozen=True)
class Document:
    """A text and the name it goes by, such as that of its module or `file.jsonl:17`."""

    name: str
    text: str


def kind(file: PurePath) -> str | None:
    """The suffix that tells how to read `file`; None where it can't be read.

    >>> kind(Path("wiki.jsonl.zst")), kind(Path("README.md"))
    ('.jsonl', None)
    """
    *_, before, last = ["", "", *map(str.lower, file.suffixes)]
    if last in _PACKED:
        return before if before in (".txt", ".jsonl") else None
    return last if last in SUFFIXES else None


def find(folder: Path) -> list[Path]:
    """The files of text in `folder` and below, sorted, without hidden ones; links are followed, a loop once."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(root) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        found += [Path(root, name) for name in names if not name.startswith(".") and kind(Path(name))]
    return sorted(found)


def read(path: Path, column: str = "text") -> Iterator[Document]:
    """The documents of one file that are not empty; ValueError names the file, the line or column, and what to do."""
    import pyarrow

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from its corpus: fetch the corpus again")
    reader = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".txt": _read_txt}[kind(path) or ".txt"]
    try:
        yield from (document for document in reader(path, column) if document.text)
    except PermissionError as error:
        _unreadable(PermissionError(error.errno, "Permission denied", str(path)))
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is no whole {kind(path)} file ({reason}): fetch or write it again") from error


def plain(text: str) -> str:
    """`text` with lone surrogates, which no tokenizer takes, as U+FFFD.

    >>> plain("a" + chr(0xd83d)) == "a" + chr(0xfffd)
    True
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _unreadable(error: OSError) -> NoReturn:
    raise PermissionError(f"{error.filename} can't be read ({error.strerror}): give yourself the right to, "
                          "or move it out of the corpus") from error


def _read_parquet(path: Path, column: str) -> Iterator[Document]:
    import pyarrow.parquet

    # Buffered, for otherwise the whole column of a row group, which may be the whole file, is read at once.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        types = {field.name: field.type for field in file.schema_arrow}
        if not _is_text(types.get(column)):
            there = ", ".join(f"{name} ({type})" for name, type in types.items())
            raise ValueError(f"column={column!r} of {path} is no column of text: its columns are {there}")
        titled = column != "name" and _is_text(types.get("name"))
        row = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=[column, "name"] if titled else [column]):
            try:
                texts = batch.column(column).to_pylist()
                titles = batch.column("name").to_pylist() if titled else [None] * len(texts)
            except UnicodeDecodeError as error:
                raise ValueError(f"rows {row + 1} to {row + len(batch)} of {path} hold text that is not UTF-8 "
                                 f"({error.reason}): write the file again") from error
            for title, text in zip(titles, texts, strict=True):
                row += 1
                yield Document(title or f"{path.name}:{row}", text or "")


def _is_text(type: Any) -> bool:
    """Whether `type`, of pyarrow, is that of strings, however they are stored; None, for no column, is not."""
    from pyarrow import types

    if type is not None and types.is_dictionary(type):
        type = type.value_type
    return type is not None and any(is_such(type) for is_such in (types.is_string, types.is_large_string,
                                                                  types.is_string_view))


def _read_jsonl(path: Path, column: str) -> Iterator[Document]:
    """A document a line; empty lines are passed over."""
    for number, line in enumerate(_lines(path), start=1):
        if line.isspace():
            continue
        try:
            text = json.loads(line)[column]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} is no JSON object with a field {column!r}: {line.strip():.60}"
                             ) from error
        if not isinstance(text, str | None):
            raise ValueError(f"line {number} of {path} has no text in {column!r} but {text!r:.60}")
        yield Document(f"{path.name}:{number}", plain(text or ""))


def _read_txt(path: Path, _column: str) -> Iterator[Document]:
    """A document ends at a line `<|endoftext|>`, at the first empty line after 4,000 characters, or after 100,000."""
    lines: list[str] = []
    size = number = 0
    for line in _lines(path, _TXT_MOST):
        ends = line.strip() == "<|endoftext|>"
        if not ends:
            lines.append(line)
            size += len(line)
        if ends or size >= _TXT_MOST or (size >= _TXT_CHARS and not line.strip()):
            number += 1
            yield Document(f"{path.name}:{number}", "".join(lines).strip("\n"))
            lines, size = [], 0
    yield Document(f"{path.name}:{number + 1}", "".join(lines).strip("\n"))


def _lines(path: Path, most: int = -1) -> Iterator[str]:
    """Lines of a UTF-8 file, unpacked as its suffix says, those of over `most` characters in pieces."""
    import pyarrow

    number = 0
    with pyarrow.input_stream(str(path), compression=_PACKED.get(path.suffix.lower())) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig")
        try:
            while line := text.readline(most):
                number += 1
                yield line
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 soon after line {number} ({error.reason}): convert it, "
                             "for example with iconv") from error
