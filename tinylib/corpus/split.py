"""Train and validation split: by the names of files and folders, else by a hash of each document."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from tinylib.checks import UserError

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
VALIDATION_SHARE = 0.04
"""Share of the documents that a hash puts into validation."""
BY_HASH = f"by hash of the text, {VALIDATION_SHARE:.0%} validation"

_MEANING = {"train": "train", "training": "train", **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
            **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout", "heldout"), "test")}
_NEUTRAL = {"of", "set", "split", "part", "shard", "file", "data", "dataset", "corpus", "text", "texts", "documents",
            "v", "txt", "json", "jsonl", "parquet", "gz", "zst"}


class NamedSplit(NamedTuple):
    """Files by the split that their names tell; `unused` ones are in neither."""

    train: list[str]
    val: list[str]
    unused: list[str]


def split_by_name(files: Iterable[str]) -> NamedSplit:
    """Training, validation and unused files, from their paths relative to the folder of the corpus.

    Words that count: train, training; val, valid, validation, dev; test, testing, eval, evaluation, holdout, held-out.
    A word counts if it is the whole name of a file or folder, or its last word (`wiki-test`).  The first word counts
    if another name shares the rest (`test-wiki` beside `wiki`), or if some name begins or ends with `train` and the
    rest of the path tells nothing: otherwise `val-de-marne` is a department.  Words in the middle never count.
    Numbers, hashes, suffixes and words such as `shard` are ignored.

    Files named for validation are that; if there are none, those named for tests.  With both, the tests are unused; so
    is what is named both for training and as held out, and, beside files named for training, what is named for nothing.
    Raises UserError if no file is left to train on.

    >>> split_by_name(["en/train-0.parquet", "en/test-0.parquet", "en/dev-0.parquet"])
    NamedSplit(train=['en/train-0.parquet'], val=['en/dev-0.parquet'], unused=['en/test-0.parquet'])
    """
    splits = _splits(sorted(files))
    trains = any(told == {"train"} for told in splits.values())
    train = [file for file, told in splits.items() if told == {"train"} or not (told or trains)]
    held_out = [file for file, told in splits.items() if told and "train" not in told]
    val = [file for file in held_out if "val" in splits[file]] or held_out
    if splits and not train:
        raise UserError(f"all files are named as held out ({shorten(list(splits))}), so none is left to train on: "
                        "rename those for training, or give the path of one file, whose own name doesn't count")
    return NamedSplit(train, val, sorted(set(splits) - {*train, *val}))


def _splits(files: list[str]) -> dict[str, set[str]]:
    """The splits that the path of each file tells."""
    words = {part: _words(part) for file in files for part in PurePosixPath(file).parts}
    shared = Counter(map(_rest, set(words.values())))
    trains = any(_MEANING.get(word) == "train" for some in words.values() for word in (some[:1] + some[-1:]))
    found = {}
    for file in files:
        parts = [words[part] for part in PurePosixPath(file).parts]
        sure = {split for some in parts for split in _told(some, shared[_rest(some)] > 1)}
        found[file] = sure or {split for some in parts for split in _told(some, trains)}
    return found


def _words(name: str) -> tuple[str, ...]:
    """The words of a file's or folder's name that can matter, in lower case.

    >>> _words("C4-Held_Out.00000-of-00008.json.gz"), _words("test-00000-of-00001-a09b74b3ef9c3b56.parquet")
    (('c', 'heldout'), ('test',))
    """
    name = re.sub(r"(hold|held)[\W_]+out", r"\1out", name.lower())
    name = re.sub(r"(?<![^\W_])(?=[a-f]*\d)[\da-f]{8,}(?![^\W_])", "", name)    # hashes
    return tuple(word for word in re.findall(r"[^\W\d_]+", name) if word not in _NEUTRAL)


def _rest(words: tuple[str, ...]) -> tuple[str, ...]:
    """`words` without those at either end that tell a split."""
    start, end = words[:1] and words[0] in _MEANING, words[1:] and words[-1] in _MEANING
    return words[bool(start):len(words) - bool(end)]


def _told(words: tuple[str, ...], first_counts: bool) -> set[str]:
    """The splits that one name tells; its first word counts by itself only if `first_counts`."""
    if not set(words) <= set(_MEANING):
        words = words[-1:] + (words[:1] if first_counts or words[-1] in _MEANING else ())
    return {_MEANING[word] for word in words if word in _MEANING}


def tells_split(name: str) -> bool:
    """Whether the name of a folder tells a split and nothing else.

    >>> tells_split("test"), tells_split("validation_set"), tells_split("en")
    (True, True, False)
    """
    return set() < set(_words(name)) <= set(_MEANING)


def shorten(names: list[str]) -> str:
    """The first names, and how many there are if that's more: `a, b, c … 9 in all`."""
    return ", ".join(names[:3]) + (f" … {len(names)} in all" if len(names) > 3 else "")


def in_validation(key: str) -> bool:
    """Whether a hash puts the document with this name (built-in corpora) or text (local files) into validation.

    >>> [name for name in ("ast", "csv", "json", "queue", "random", "wave") if in_validation(name)]
    ['json', 'queue']
    """
    return int.from_bytes(digest(key)[:8], "big") < VALIDATION_SHARE * 2**64


def digest(text: str) -> bytes:
    """The first 16 bytes of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()[:16]
