"""Where documents come from: the documentation on this machine, the hub, local files; manifest and fixed split.

- `pydocs`: the docstrings of the standard library and of PACKAGES, one document a module; `pydocs-stdlib`: of the
  standard library alone; `pysource`: their whole source files.  Harvested once, without importing anything, and kept.
- `fineweb-edu`, `climbmix`: shards of the hub; the last one is validation, however many are used for training.
- a path: a `.txt`, `.jsonl` (also `.gz`, `.zst`) or `.parquet` file, or a folder of them.

No document is in both splits.  Where no file is named for validation a hash of each document decides, so validation
stays what it is however much training text there is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tinylib import hardware
from tinylib.corpus.documents import SPLITS, SUFFIXES, VALIDATION_SHARE, Corpus, Document, Split, in_validation, kind
from tinylib.corpus.harvest import BUILT_IN, PACKAGES, built_in
from tinylib.corpus.hub import HUB, from_hub

__all__ = ["BUILT_IN", "HUB", "PACKAGES", "SPLITS", "VALIDATION_SHARE", "Corpus", "Document", "Split", "fetch",
           "in_validation", "load"]


def load(name: str | os.PathLike[str], *, shards: int = 15, column: str = "text") -> Corpus:
    """The corpus called `name`, or the one at that path; what isn't on this machine yet is harvested or fetched.

    `shards` says how many training files of a data set of the hub to use, `column` which column of a parquet file or
    field of a JSON line holds the text.
    """
    if name in BUILT_IN:
        return built_in(str(name), _folder(str(name)))
    if name in HUB:
        return from_hub(str(name), shards, _folder(str(name)))
    return _local(Path(name), column)


def fetch(name: str | os.PathLike[str], *, shards: int = 15, refresh: bool = False) -> dict[str, Any]:
    """Make sure that the corpus is on this machine, whole, and say what it is: its manifest.

    `refresh` harvests a built-in corpus anew, from the packages as they are now.
    """
    if refresh and name in BUILT_IN:
        return built_in(str(name), _folder(str(name)), refresh=True).manifest
    return load(name, shards=shards).manifest


def _folder(name: str) -> Path:
    return hardware.home() / "data" / "corpus" / name


def _local(path: Path, column: str) -> Corpus:
    """Files of a folder whose name begins with "val" are validation; without any, a hash of each text decides."""
    if not path.exists():
        raise FileNotFoundError(f"no corpus {str(path)!r}: there is no such file or folder, and the names are "
                                + ", ".join([*BUILT_IN, *HUB]))
    files = sorted(file for file in path.rglob("*") if kind(file)) if path.is_dir() else [path]
    if not files or not all(map(kind, files)):
        raise ValueError(f"{path} holds no text that can be read: use {', '.join(SUFFIXES)}, also .gz and .zst")
    val = [file for file in files if file.name.lower().startswith("val")] if path.is_dir() else []
    train = [file for file in files if file not in val]
    if not train:
        raise ValueError(f"{path} holds validation files only ({val[0].name} …): add files to train on")
    return Corpus(path.name, tuple(train), tuple(val), {"licence": "not stated"}, column)
