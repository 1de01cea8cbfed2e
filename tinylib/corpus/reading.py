"""Readers of `.txt`, `.jsonl` and `.parquet` files: streamed one document at a time, in bounded memory."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tinylib.checks import UserError

SUFFIXES = (".txt", ".jsonl", ".parquet")
_PACKED = {".gz": "gzip", ".zst": "zstd"}
_TXT_CHARS, _TXT_MOST = 4_000, 100_000
_ROWS = 64    # of parquet, decoded at once: they may be whole books


@dataclass(frozen=True)
class Document:
    """A text and its name, such as `json.decoder` for a module or `file.jsonl:17` for a line.

    The text of a conversation is JSON, a list of messages with `role` and `content`.
    """

    name: str
    text: str
    origin: str = ""
    """The field or column `source` of its line or row, if any."""

    @property
    def source(self) -> str:
        """Source of the document: its origin, else its package or file.

        >>> Document("json.decoder", "…").source, Document("wiki.jsonl:17", "…").source
        ('json', 'wiki')
        """
        return self.origin or re.split(r"[.:]", self.name)[0]

    @property
    def kind(self) -> str:
        """Kind of text, by the share of letters, spaces and .,;' in it: prose from 96%, code below 90%, else mixed.

        >>> Document("a", "A sentence, and another.").kind, Document("b", "f(x) = 2 * (x + 1)").kind
        ('prose', 'code')
        """
        share = sum(character.isalpha() or character in " \n.,;'" for character in self.text) / max(1, len(self.text))
        return "prose" if share >= 0.96 else "mixed" if share >= 0.9 else "code"


def kind(file: PurePath) -> str | None:
    """The format of `file`, as a suffix without that of its compression; None for one that can't be read.

    >>> kind(Path("wiki.jsonl.zst")), kind(Path("README.md"))
    ('.jsonl', None)
    """
    *_, before, last = ["", "", *map(str.lower, file.suffixes)]
    if last in _PACKED:
        return before if before in (".txt", ".jsonl") else None
    return last if last in SUFFIXES else None


def find(folder: Path) -> tuple[list[Path], int]:
    """The text files in `folder` and below, sorted, and the number of files of other formats.

    Hidden files and folders don't count.  Links are followed, but no folder is visited twice.
    """
    files, seen, folders = [], set(), [folder]
    while folders:
        here = folders.pop()
        if here.resolve() not in seen:
            seen.add(here.resolve())
            visible = sorted((path for path in here.iterdir() if not path.name.startswith(".")), reverse=True)
            folders += filter(Path.is_dir, visible)
            files += itertools.filterfalse(Path.is_dir, visible)
    found = sorted(filter(kind, files))
    return found, len(files) - len(found)


def read(path: Path, column: str = "text") -> Iterator[Document]:
    """The documents of one file, without empty ones.

    Raises UserError, with the file and its line or column, for content that can't be read; FileNotFoundError and
    PermissionError for a file that can't be opened.
    """
    import pyarrow

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from its corpus: fetch the corpus again")
    reader = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".txt": _read_txt}[kind(path) or ".txt"]
    try:
        yield from (document for document in reader(path, column) if document.text)
    except PermissionError:
        raise
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} is no whole {kind(path)} file ({reason}): fetch or write it again") from error


def plain(text: str) -> str:
    """`text` with lone surrogates, which no tokenizer takes, as U+FFFD.

    >>> plain("a" + chr(0xd83d)) == "a" + chr(0xfffd)
    True
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_parquet(path: Path, column: str) -> Iterator[Document]:
    import pyarrow.parquet

    # Without a buffer, the whole column of a row group, which may be the whole file, would be read at once.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        column = _column(column, file.schema_arrow.names)
        texts = {field.name for field in file.schema_arrow if _is_text(field.type) or _is_messages(field.type)}
        if file.schema_arrow.names.count(column) > 1:
            raise UserError(f"column={column!r} is in {path} more than once: write the file with one of them")
        if column not in texts:
            there = ", ".join(f"{field.name} ({field.type})" for field in file.schema_arrow)
            raise UserError(f"column={column!r} of {path} is no column of text or messages: its columns are {there}")
        columns = [column, *sorted(texts & {"name", "source"} - {column})]
        row = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            for record in batch.to_pylist():
                row += 1
                yield Document(record.get("name") or f"{path.name}:{row}", _text(record[column]),
                               record.get("source") or "")


def _is_text(type: Any) -> bool:
    """Whether a pyarrow type is that of strings, in any storage."""
    from pyarrow import types

    stored = type.value_type if types.is_dictionary(type) else type
    return types.is_string(stored) or types.is_large_string(stored) or types.is_string_view(stored)


def _is_messages(type: Any) -> bool:
    """Whether a pyarrow type is that of conversations: lists of records with `role` and `content`."""
    from pyarrow import types

    is_list = types.is_list(type) or types.is_large_list(type)
    return is_list and types.is_struct(type.value_type) and {"role", "content"} <= {field.name for field in
                                                                                    type.value_type.fields}


def _column(asked: str, there: Collection[str]) -> str:
    """The column to read: `messages`, of conversations, where `text` is asked for and only that is there."""
    return "messages" if asked == "text" and "text" not in there and "messages" in there else asked


def _text(value: Any) -> str:
    """A document's text; of a conversation, its messages as JSON."""
    return plain(value or "") if isinstance(value, str | None) else plain(json.dumps(value, ensure_ascii=False))


def _read_jsonl(path: Path, column: str) -> Iterator[Document]:
    """One document a line; empty lines are skipped."""
    for number, line in enumerate(_lines(path), start=1):
        if line.isspace():
            continue
        try:
            record = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"line {number} of {path} is no JSON object: {line.strip():.60}") from error
        name = _column(column, record)
        if name not in record:
            raise UserError(f"line {number} of {path} has no field {column!r}: use column (--column) with the one of "
                            f"{', '.join(record) or 'none'} that holds the text")
        text = record[name]
        is_messages = isinstance(text, list) and all(isinstance(message, dict) and {"role", "content"} <= message.keys()
                                                     for message in text)
        if not is_messages and not isinstance(text, str | None):
            raise UserError(f"line {number} of {path} has no text or messages in {column!r} but {text!r:.60}")
        source = record.get("source")
        yield Document(f"{path.name}:{number}", _text(text), source if isinstance(source, str) else "")


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
    """The lines of a UTF-8 file, decompressed by its suffix; lines of over `most` characters come in pieces."""
    import pyarrow

    number = 0
    with pyarrow.input_stream(str(path), compression=_PACKED.get(path.suffix.lower())) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig")
        try:
            while line := text.readline(most):
                number += 1
                if 4 * line.count("\0") > len(line):
                    raise UserError(f"{path} looks like UTF-16 or UTF-32, line {number} is full of NULs: convert it to "
                                    "UTF-8, for example with iconv")
                yield line
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 soon after line {number} ({error.reason}): convert it, "
                            "for example with iconv") from error
