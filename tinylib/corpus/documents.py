"""A corpus: documents in files, in two splits that share no document, described by a manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tinylib import checks
from tinylib.corpus.reading import Document, read
from tinylib.corpus.split import BY_HASH, SPLITS, Split, digest, in_validation, shorten
from tinylib.files import read_json


@dataclass(frozen=True)
class Corpus:
    """Documents in files, each in one of two splits."""

    name: str
    train_files: tuple[Path, ...]
    val_files: tuple[Path, ...] = ()
    """Files of validation; without any, a hash of each document's text decides."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further entries of the manifest: source, licence, revision, versions."""
    column: str = "text"
    """Column of a parquet file, or field of a JSON line, that holds the text."""
    manifest_file: Path | None = None
    """The manifest, if it was written when the corpus was made."""

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
        """Everything that pins the corpus, ready for JSON: files with size and SHA-256 by split, counts, one hash.

        Reads every file once, in bounded memory.  `sha256` covers the names and texts of all documents in the order
        of the files, so it doesn't depend on how they are stored; `left_out` counts training documents that are in
        validation too.  Raises UserError for a corpus without a document.
        """
        from tqdm import tqdm

        if self.manifest_file is not None and (written := read_json(self.manifest_file)):
            return written
        whole, files = hashlib.sha256(), [*self.train_files, *self.val_files]
        root = os.path.commonpath([file.parent for file in files])
        splits: dict[str, dict[str, Any]] = {split: {"files": [], "documents": 0, "characters": 0} for split in SPLITS}
        splits["train"]["left_out"] = 0
        for file in tqdm(files, desc="reading the corpus", unit=" files", disable=None, leave=False):
            facts = {"name": file.relative_to(root).as_posix(), "bytes": file.stat().st_size,
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
        if not any(facts["documents"] for facts in splits.values()):
            raise checks.UserError(f"{self.name} holds no document: its files are empty, so add text to one")
        rule = "by file name" if self.val_files else BY_HASH
        return {"version": 1, "name": self.name, "split": rule, **self.facts, "splits": splits,
                "sha256": whole.hexdigest()}

    def _placed(self, file: Path) -> Iterator[tuple[Split | None, Document]]:
        """The documents of `file`, each with its split; None for a training text that is in validation too."""
        for document in read(file, self.column):
            if not self.val_files:
                yield "val" if in_validation(document.text) else "train", document
            elif file in self.val_files:
                yield "val", document
            else:
                yield None if digest(document.text) in self._validation else "train", document

    @cached_property
    def _validation(self) -> frozenset[bytes]:
        return frozenset(digest(document.text) for file in self.val_files for document in read(file, self.column))


def table(manifest: dict[str, Any]) -> dict[str, str]:
    """Rows for printing a manifest: counts and files of each split, unused files, origin, hash."""
    rows, splits = {}, manifest["splits"]
    for split, facts in splits.items():
        rows[f"{split} documents"] = f"{facts['documents']:,}, {facts['characters']:,} characters"
        if split == "train" or facts["files"] != splits["train"]["files"]:
            names = [file["name"] for file in facts["files"]]
            rows[f"{split} files"] = f"{len(names)}: {shorten(names)}"
    if not splits["val"]["documents"]:
        rows["val documents"] = "0: nothing to evaluate on, so add text, or a file that is named val"
    rows |= {"split": manifest["split"], "unused files": shorten(manifest.get("unused", []))}
    rows["perhaps twice"] = shorten(manifest.get("twice", []))
    rows["passed over"] = f"{manifest['passed_over']:,} of other formats" if manifest.get("passed_over") else ""
    rows["training files"] = manifest.get("training_files", "")
    rows |= {key: manifest.get(key, "") for key in ("licence", "revision", "sha256")}
    return {key: text for key, text in rows.items() if text}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
