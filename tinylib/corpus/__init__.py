"""Documents: the documentation on this machine, the Hugging Face hub, local files; manifest, train/validation split.

- `pydocs`: the docstrings of the standard library and of PACKAGES, one document a module; `pydocs-stdlib`: of the
  standard library alone; `pysource`: their whole source files.  Harvested once, without importing anything, and kept.
- `pyqa`, `pyqa-stdlib`: conversations of one or two questions made of `pydocs`, split by module.
- `fineweb-edu`, `climbmix`, `smoltalk` (conversations), `owner/name` or `owner/name/folder`: a data set of the hub,
  fetched into the hub's cache.
- a path: a `.txt`, `.jsonl` (also `.gz`, `.zst`) or `.parquet` file, or a folder of them.

No document is in both splits, and validation doesn't depend on how much training text is used: files named as held out
(see `split_by_name`), else the last file of a data set of the hub, else what a hash of each document picks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tinylib import profiles
from tinylib.checks import UserError
from tinylib.corpus.documents import Corpus, table
from tinylib.corpus.hub import HUB, from_hub, is_hub_name
from tinylib.corpus.installed_docs import BUILT_IN, PACKAGES, built_in
from tinylib.corpus.reading import SUFFIXES, Document, find, kind
from tinylib.corpus.split import SPLITS, VALIDATION_SHARE, NamedSplit, Split, in_validation, split_by_name

__all__ = ["BUILT_IN", "HUB", "PACKAGES", "SPLITS", "VALIDATION_SHARE", "Corpus", "Document", "Split", "fetch",
           "in_validation", "load", "split_by_name", "table"]


def load(name: str | os.PathLike[str], *, shards: int | None = None, column: str | None = None) -> Corpus:
    """The corpus called `name`, or the one at that path; harvested or fetched if it isn't on this machine yet.

    `shards` is how many training files of a data set of the hub to use; `column` is the column of a parquet file, or
    the field of a JSON line, that holds the text.  A data set of the hub defaults to what the last `fetch` was given,
    all else to 15 files, or as many as there are, and to `text`, or `messages` where only that is there.
    """
    return _open(name, shards, column)


def fetch(name: str | os.PathLike[str], *, shards: int | None = None, column: str | None = None,
          refresh: bool = False) -> dict[str, Any]:
    """Download or harvest the whole corpus, check it, and return its manifest; `table` makes rows of it.

    `shards` and `column` (see `load`) of a data set of the hub are remembered.  `refresh` harvests a built-in corpus
    anew, from the packages as they are now, or takes the newest revision of a data set of the hub.
    """
    return _open(name, shards, column, refresh=refresh, check=True).manifest


def _open(name: str | os.PathLike[str], shards: int | None, column: str | None, refresh: bool = False,
          check: bool = False) -> Corpus:
    folder = profiles.home() / "data" / "corpus"
    if name in BUILT_IN:
        return built_in(str(name), folder / str(name), refresh)
    if isinstance(name, str) and is_hub_name(name):
        try:
            return from_hub(name, folder / name.replace("/", "--"), shards, column, refresh, check)
        except ConnectionError as error:
            where = "" if name in HUB else f"there is no file or folder {name} here, and no data set of the hub: "
            raise ConnectionError(f"{where}{error}") from error
    return _local(name, column or "text")


def _local(name: str | os.PathLike[str], column: str) -> Corpus:
    """The corpus at a path: a file, split by hash, or a folder, where the names of the files may tell the split."""
    path = Path(name).absolute()
    if not path.exists():
        raise FileNotFoundError(f"no corpus {str(name)!r}: there is no such file or folder, and the names are "
                                + ", ".join([*BUILT_IN, *HUB]) + " and owner/name, a data set of the hub")
    files, passed_over = find(path) if path.is_dir() else ([path] if kind(path) else [], 0)
    if not files:
        raise UserError(f"{path} holds no text that can be read: use {', '.join(SUFFIXES)}, the first two also .gz "
                        "and .zst")
    unreadable = [file for file in files if not _is_utf8(str(file))]
    if unreadable:
        raise UserError(f"{str(unreadable[0])!a} has a name that is not UTF-8: rename it")
    root, split = path.parent, NamedSplit([path.name], [], [])
    if path.is_dir():
        root, split = path, split_by_name(file.relative_to(path).as_posix() for file in files)
    train, val = (tuple(root / file for file in some) for some in (split.train, split.val))
    packed = {file for file in files if file.suffix.lower() in (".gz", ".zst") and file.with_suffix("") in files}
    facts = {"unused": split.unused, "passed_over": passed_over, "source": str(path), "licence": "not stated",
             "twice": sorted(file.relative_to(root).as_posix() for file in packed)}
    return Corpus(path.resolve().name, train, val, facts, column)


def _is_utf8(name: str) -> bool:
    return name == name.encode(errors="replace").decode()
