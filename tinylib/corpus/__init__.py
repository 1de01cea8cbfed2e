"""Where documents come from: the documentation on this machine, the hub, local files; manifest and fixed split.

- `pydocs`: the docstrings of the standard library and of PACKAGES, one document a module; `pydocs-stdlib`: of the
  standard library alone; `pysource`: their whole source files.  Harvested once, without importing anything, and kept.
- `fineweb-edu`, `climbmix`, `owner/name` or `owner/name/folder`: a data set of the hub, fetched into the hub's cache.
- a path: a `.txt`, `.jsonl` (also `.gz`, `.zst`) or `.parquet` file, or a folder of them.

No document is in both splits, and validation stays what it is however much training text there is: files named for
validation, else the last file of a data set of the hub, else what a hash of each document picks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tinylib import profiles
from tinylib.corpus.documents import BY_HASH, SPLITS, VALIDATION_SHARE, Corpus, Split, in_validation, split_by_name
from tinylib.corpus.files import SUFFIXES, Document, find, kind
from tinylib.corpus.hub import HUB, from_hub, is_hub_name
from tinylib.corpus.installed_docs import BUILT_IN, PACKAGES, built_in

__all__ = ["BUILT_IN", "HUB", "PACKAGES", "SPLITS", "VALIDATION_SHARE", "Corpus", "Document", "Split", "fetch",
           "in_validation", "load"]


def load(name: str | os.PathLike[str], *, shards: int | None = None, column: str | None = None) -> Corpus:
    """The corpus called `name`, or the one at that path; what isn't on this machine yet is harvested or fetched.

    `shards` says how many training files of a data set of the hub to use, `column` which column of a parquet file or
    field of a JSON line holds the text.  Without them a data set of the hub takes what `fetch` was last told, at first
    15 files, or as many as there are, and `text`.
    """
    return _open(name, shards, column)


def fetch(name: str | os.PathLike[str], *, shards: int | None = None, column: str | None = None,
          refresh: bool = False) -> dict[str, Any]:
    """Make sure that the corpus is on this machine, whole, and say what it is: its manifest.

    `shards` and `column`, of a data set of the hub, are remembered; see `load`.  `refresh` harvests a built-in
    corpus anew, from the packages as they are now, and takes the newest revision of a data set of the hub.
    """
    return _open(name, shards, column, refresh=refresh, check=True).manifest


def _open(name: str | os.PathLike[str], shards: int | None, column: str | None, *, refresh: bool = False,
          check: bool = False) -> Corpus:
    folder = profiles.home() / "data" / "corpus"
    if name in BUILT_IN:
        return built_in(str(name), folder / str(name), refresh=refresh)
    if isinstance(name, str) and is_hub_name(name):
        return from_hub(name, folder / name.replace("/", "--"), shards=shards, column=column, refresh=refresh,
                        check=check)
    return _local(Path(name), column or "text")


def _local(path: Path, column: str) -> Corpus:
    """Files named for validation are that; without any, a hash of each text decides."""
    if not path.exists():
        raise FileNotFoundError(f"no corpus {str(path)!r}: there is no such file or folder, and the names are "
                                + ", ".join([*BUILT_IN, *HUB]) + " and owner/name, a data set of the hub")
    files = find(path) if path.is_dir() else [path]
    if not files or not all(map(kind, files)):
        raise ValueError(f"{path} holds no text that can be read: use {', '.join(SUFFIXES)}, the first two also .gz "
                         "and .zst")
    root = path if path.is_dir() else path.parent
    train, val, rule = split_by_name(file.relative_to(root) for file in files) or (files, [], BY_HASH)
    facts = {"split": rule, "source": str(path), "licence": "not stated"}
    return Corpus(path.resolve().name, tuple(root / file for file in train), tuple(root / file for file in val), facts,
                  column)
