"""A corpus: documents in files, in two splits that share no document, described by a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

from tinylib import checks
from tinylib.corpus.files import Document, read

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
VALIDATION_SHARE = 0.04
"""Share of the documents that a hash puts into validation."""
BY_HASH = f"by hash of the text, {VALIDATION_SHARE:.0%} validation"

_SAYS = {"val": {"val", "valid", "validation", "dev"}, "test": {"test"}, "train": {"train", "training"}}
SPLIT_WORDS = set().union(*_SAYS.values())
"""Names of files or folders that tell a split."""
PathLike = TypeVar("PathLike", bound=PurePath)


@dataclass(frozen=True)
class Corpus:
    """Documents in files, each in one of two splits."""

    name: str
    train_files: tuple[Path, ...]
    val_files: tuple[Path, ...] = ()
    """Files of validation; without any, a hash of each document's text decides."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the manifest tells: the rule of the split, source, licence, revision, versions."""
    column: str = "text"
    """Column of a parquet file, or field of a JSON line, that holds the text."""
    manifest_file: Path | None = None
    """The manifest, where it was written when the corpus was made."""

    def texts(self, split: Split) -> Iterator[str]:
        """The texts of `split`, one by one."""
        return (document.text for document in self.documents(split))

    def documents(self, split: Split) -> Iterator[Document]:
        """The documents of `split` in the order of the files; a training text that is in validation is left out."""
        checks.raise_if("Corpus", [checks.check_choice("split", split, SPLITS)])
        files = self.val_files if split == "val" and self.val_files else self.train_files
        return (document for file in files for place, document in self._placed(file) if place == split)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Everything that pins the corpus, ready for JSON: files with size and sha256 by split, counts, one hash.

        Reads every file once, in bounded memory.  `sha256` is over the names and texts of all documents in the order
        of the files, so it doesn't change with how they are stored; `left_out` counts training documents that are in
        validation too.  Raises ValueError for a corpus without a document.
        """
        if self.manifest_file is not None:
            return dict(json.loads(self.manifest_file.read_text(encoding="utf-8")))
        whole = hashlib.sha256()
        splits: dict[str, dict[str, Any]] = {split: {"files": [], "documents": 0, "characters": 0} for split in SPLITS}
        splits["train"]["left_out"] = 0
        for file in _with_bar([*self.train_files, *self.val_files]):
            self._count(file, splits, whole)
        if not sum(facts["documents"] for facts in splits.values()):
            raise ValueError(f"{self.name} holds no document: its files are empty, so add text to one")
        rule = "by file" if self.val_files else BY_HASH
        return {"version": 1, "name": self.name, "split": rule, **self.facts, "splits": splits,
                "sha256": whole.hexdigest()}

    def _count(self, file: Path, splits: dict[str, dict[str, Any]], whole: Any) -> None:
        """Add what is in `file` to the counts of its split, or, where a hash decides, of both."""
        facts = {"name": file.relative_to(self._root).as_posix(), "bytes": file.stat().st_size,
                 "sha256": file_digest(file)}
        for split in SPLITS if not self.val_files else ["val"] if file in self.val_files else ["train"]:
            splits[split]["files"].append(facts)
        for place, document in self._placed(file):
            if place is None:
                splits["train"]["left_out"] += 1
                continue
            splits[place]["documents"] += 1
            splits[place]["characters"] += len(document.text)
            whole.update(f"{place}\0{document.name}\0{document.text}\0".encode())

    def _placed(self, file: Path) -> Iterator[tuple[Split | None, Document]]:
        """The documents of `file`, each with its split; None for a training text that is in validation too."""
        if not self.val_files:
            return (("val" if in_validation(document.text) else "train", document)
                    for document in read(file, self.column))
        if file in self.val_files:
            return (("val", document) for document in read(file, self.column))
        return ((None if digest(document.text) in self._validation else "train", document)
                for document in read(file, self.column))

    @cached_property
    def _root(self) -> Path:
        return Path(os.path.commonpath([file.parent for file in (*self.train_files, *self.val_files)]))

    @cached_property
    def _validation(self) -> frozenset[bytes]:
        return frozenset(digest(document.text) for file in self.val_files for document in read(file, self.column))


def split_by_name(files: Iterable[PathLike]) -> tuple[list[PathLike], list[PathLike], str] | None:
    """Training files, validation files and the rule in words; None where the names don't say.

    A file whose name or folder says validation, valid, val or dev is validation; where none does, but some say train,
    those that say test are.

    >>> train, val, rule = split_by_name(map(PurePath, ["en/train-0.parquet", "en/test-0.parquet", "en/dev-0.parquet"]))
    >>> [str(file) for file in train], [str(file) for file in val], rule
    (['en/train-0.parquet'], ['en/dev-0.parquet'], 'by file: those named for validation; those named for test unused')
    """
    says: dict[str | None, list[PathLike]] = {"val": [], "test": [], "train": [], None: []}
    for file in files:
        words = set(re.split(r"[^a-z]+", str(file).lower()))
        says[next((split for split, names in _SAYS.items() if names & words), None)].append(file)
    train = sorted(says["train"] + says[None])
    if train and says["val"]:
        unused = "; those named for test unused" if says["test"] else ""
        return train, says["val"], f"by file: those named for validation{unused}"
    if says["train"] and says["test"]:
        return train, says["test"], "by file: those named for test, as none is named for validation"
    return None


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


def _with_bar(files: list[Path]) -> Iterable[Path]:
    """The files, with a progress bar where a person watches."""
    from tqdm import tqdm

    return tqdm(files, desc="reading the corpus", unit=" files", disable=None, leave=False)
