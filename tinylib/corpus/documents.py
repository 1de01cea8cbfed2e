"""Documents in files: read one by one, split into training and validation, described by a manifest."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
VALIDATION_SHARE = 0.04
"""Share of the documents that a hash puts into validation."""

SUFFIXES = (".txt", ".jsonl", ".parquet")
_PACKED = ("", ".gz", ".zst")
_TXT_CHARS = 4_000


@dataclass(frozen=True)
class Document:
    """A text and the name it goes by, such as that of its module or `file.jsonl:17`."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents in files, each in one of two splits."""

    name: str
    train_files: tuple[Path, ...]
    val_files: tuple[Path, ...] = ()
    """Files of validation; without any, a hash of each document's text decides."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the manifest tells: licence, revision, versions."""
    column: str = "text"
    """Column of a parquet file, or field of a JSON line, that holds the text."""
    manifest_file: Path | None = None
    """The manifest, where it was written when the corpus was made."""

    def texts(self, split: Split) -> Iterator[str]:
        """The texts of `split`, one by one."""
        return (document.text for document in self.documents(split))

    def documents(self, split: Split) -> Iterator[Document]:
        """The documents of `split` in the order of the files; a training text that is in validation is left out."""
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not a split: use train or val")
        if not self.val_files:
            return (document for document in self._read(self.train_files)
                    if in_validation(document.text) == (split == "val"))
        if split == "val":
            return self._read(self.val_files)
        return (document for document in self._read(self.train_files)
                if digest(document.text) not in self._validation)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Everything that pins the corpus, ready for JSON: files with size and sha256 by split, counts, one hash.

        `sha256` is over the names and texts of all documents, so it doesn't change with how they are stored.
        """
        if self.manifest_file is not None:
            return dict(json.loads(self.manifest_file.read_text(encoding="utf-8")))
        whole = hashlib.sha256()
        rule = "by file" if self.val_files else f"by hash of the text, {VALIDATION_SHARE:.0%} validation"
        splits = {split: self._describe(split, whole) for split in SPLITS}
        return {"version": 1, "name": self.name, "split": rule, **self.facts, "splits": splits,
                "sha256": whole.hexdigest()}

    def _read(self, files: Iterable[Path]) -> Iterator[Document]:
        return (document for file in files for document in read(file, self.column))

    @cached_property
    def _validation(self) -> frozenset[bytes]:
        return frozenset(digest(document.text) for document in self._read(self.val_files))

    def _describe(self, split: Split, whole: Any) -> dict[str, Any]:
        files = self.val_files if split == "val" and self.val_files else self.train_files
        documents = characters = 0
        for document in self.documents(split):
            documents, characters = documents + 1, characters + len(document.text)
            whole.update(f"{split}\0{document.name}\0{document.text}\0".encode())
        return {"files": [{"name": file.name, "bytes": file.stat().st_size, "sha256": file_digest(file)}
                          for file in files], "documents": documents, "characters": characters}


def in_validation(key: str) -> bool:
    """Whether a hash puts the document with this name (built-in corpora) or text (local files) into validation.

    >>> [name for name in ("ast", "csv", "json", "queue", "random", "wave") if in_validation(name)]
    ['json', 'queue']
    """
    return int.from_bytes(digest(key)[:8], "big") < VALIDATION_SHARE * 2**64


def digest(text: str) -> bytes:
    """Sixteen bytes that tell one text from any other."""
    return hashlib.sha256(text.encode()).digest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(text: str) -> str:
    """`text` with lone surrogates, which no tokenizer takes, as U+FFFD.

    >>> plain("a" + chr(0xd83d)) == "a" + chr(0xfffd)
    True
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def kind(file: Path) -> str | None:
    """The suffix that tells how to read `file`; None where it can't be read.

    >>> kind(Path("wiki.jsonl.zst")), kind(Path("README.md"))
    ('.jsonl', None)
    """
    name = file.name.lower()
    return next((suffix for suffix in SUFFIXES for packed in _PACKED if name.endswith(suffix + packed)), None)


def read(path: Path, column: str = "text") -> Iterator[Document]:
    """The documents of one file that are not empty; ValueError names the line or column that is wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from its corpus: fetch the corpus again")
    reader = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".txt": _read_txt}[kind(path) or ".txt"]
    return (document for document in reader(path, column) if document.text)


def _read_parquet(path: Path, column: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole parquet file: fetch or write it again") from error
    names = file.schema_arrow.names
    if column not in names:
        raise ValueError(f"column={column!r} is not in {path}: its columns are {', '.join(names)}")
    row = 0
    for batch in file.iter_batches(batch_size=512, columns=[column, *({"name"} & set(names))]):
        texts = batch.column(column).to_pylist()
        titles = batch.column("name").to_pylist() if "name" in names else [None] * len(texts)
        for title, text in zip(titles, texts, strict=True):
            row += 1
            yield Document(str(title) if title else f"{path.name}:{row}", text or "")


def _read_jsonl(path: Path, column: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), start=1):
        try:
            text = json.loads(line)[column]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is no JSON object with a field {column!r}") from error
        if not isinstance(text, str):
            raise ValueError(f"line {number} of {path} has no text in {column!r} but {text!r:.40}")
        yield Document(f"{path.name}:{number}", plain(text))


def _read_txt(path: Path, _column: str) -> Iterator[Document]:
    """A document ends at a line `<|endoftext|>`, or at the first empty line after 4,000 characters."""
    lines: list[str] = []
    size = number = 0
    for line in _lines(path):
        ends = line.strip() == "<|endoftext|>"
        if not ends:
            lines.append(line)
            size += len(line)
        if ends or (size >= _TXT_CHARS and not line.strip()):
            number += 1
            yield Document(f"{path.name}:{number}", "".join(lines).strip("\n"))
            lines, size = [], 0
    yield Document(f"{path.name}:{number + 1}", "".join(lines).strip("\n"))


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, unpacked as its suffix says."""
    import pyarrow

    with pyarrow.input_stream(str(path), compression="detect") as stream:
        try:
            yield from io.TextIOWrapper(stream, encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error.reason}): convert it first") from error
