"""What is whole of a build that is not: its token files, and a journal with a line for each part of the text.

A part is appended to the token files, then a line to the journal: its counts, a hash of its text, where its tokens
lie, and a hash of them.  A kill at any moment leaves at most a piece too much, of a file or of a line.  Whoever goes on
reads the journal as far as the files agree with it, cuts off the rest, and makes sure that the documents which come by
again are those that were encoded.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np

from tinylib import files

Record = dict[str, Any]


class Journal:
    """The folder `shards` in the making, beside `target`, for one process at a time.

    Left by an error it stays if a part is whole, for the next build to go on with.
    """

    def __init__(self, target: Path, recipe: Record, fresh: bool = False) -> None:
        self.target, self.recipe, self.fresh = target, recipe, fresh
        self.place = target.with_name(f".{target.name}.part")
        self.shards = self.place / "shards"
        self.file = self.place / "parts.jsonl"
        self.splits: dict[str, Record] = {}
        self.parts = 0
        self._item = np.dtype(recipe["dtype"]).itemsize
        self._hash: Any = None
        self._lock: IO[str] | None = None
        self._kept: Iterator[Record] = iter(())

    def __enter__(self) -> Journal:
        self.place.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.place / "lock", self.target)
        try:
            if self.fresh:
                shutil.rmtree(self.shards, ignore_errors=True)
                self.file.unlink(missing_ok=True)
            self.shards.mkdir(exist_ok=True)
            self._restore()
        except BaseException:
            self._unlock()
            raise
        self._kept = self._records(self.parts)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        whole = f"{self.parts} whole parts of the text are kept in {self.place}" if self.parts else "nothing was kept"
        if error is None or not self.parts:
            shutil.rmtree(self.place, ignore_errors=True)
        elif not isinstance(error, ValueError):
            error.add_note(f"{whole}: the same build goes on from there, fresh=True starts over")
        self._unlock()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"no space left on the disk, {whole}: free some and run again",
                          str(self.target)) from error

    def recall(self, facts: Record) -> bool:
        """Whether the next part, of which these are the facts, is there already; ValueError if another one is."""
        kept = next(self._kept, None)
        if kept is not None and any(kept[name] != facts[name] for name in facts):
            raise self._other(f"of other documents in split {kept['split']!r}")
        return kept is not None

    def append(self, facts: Record, counts: np.ndarray, tokens: bytes) -> None:
        """Write a part: `counts` tokens of each document, all of them in `tokens`."""
        record = facts | {"files": self._pieces(facts["split"], counts), "tokens": sha256(tokens).hexdigest()}
        for name, piece in self._cut(record, tokens):
            with (self.shards / name).open("ab") as file:
                file.write(piece)
        with self.file.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
        self._count(record, tokens)

    def finish(self) -> None:
        """Write the index and move the folder to its place."""
        if next(self._kept, None) is not None:
            raise self._other("of more documents")
        index = {name: self.recipe[name] for name in ("dtype", "vocab_size", "tokenizer")}
        files.write_json(self.shards / "index.json", {"version": 1, **index, "splits": self.splits})
        files.replace_folder(self.shards, self.target)

    def _pieces(self, split: str, counts: np.ndarray) -> list[tuple[str, int]]:
        """Name of each file that these documents go to, and how many of their tokens."""
        limit, files = self.recipe["tokens_per_file"], self.splits.get(split, {"files": []})["files"]
        number, held = (len(files) - 1, files[-1]["tokens"]) if files else (0, 0)
        ends, done, pieces = np.cumsum(counts), 0, []
        while done < ends[-1]:
            if held >= limit:
                number, held = number + 1, 0
            end = int(ends[min(np.searchsorted(ends, done + limit - held), len(ends) - 1)])
            pieces.append((f"{split}_{number:03d}.bin", end - done))
            held, done = held + end - done, end
        return pieces

    def _cut(self, record: Record, tokens: bytes) -> Iterator[tuple[str, memoryview]]:
        start = 0
        for name, count in record["files"]:
            yield name, memoryview(tokens)[start:start + count * self._item]
            start += count * self._item

    def _count(self, record: Record, tokens: bytes) -> None:
        """Take a part that lies in the files into the index."""
        empty = {"files": [], "documents": 0, "characters": 0, "bytes": 0, "tokens": 0}
        entry = self.splits.setdefault(record["split"], empty)
        for name, piece in self._cut(record, tokens):
            if not entry["files"] or entry["files"][-1]["name"] != name:
                entry["files"].append({"name": name, "tokens": 0})
                self._hash = sha256()
            self._hash.update(piece)
            entry["files"][-1]["tokens"] += len(piece) // self._item
            entry["files"][-1]["sha256"] = self._hash.hexdigest()
        for name in ("documents", "characters", "bytes"):
            entry[name] += record[name]
        entry["tokens"] += len(tokens) // self._item
        self.parts += 1

    # Going on

    def _restore(self) -> None:
        """Take up what is whole and cut off what isn't; ValueError if it is of another recipe."""
        good = 0
        if self.file.is_file():
            with self.file.open("rb") as lines:
                good = self._restore_from(lines)
        if not good:
            files.write_text(self.file, json.dumps(self.recipe) + "\n")
        else:
            os.truncate(self.file, good)
        sizes = {file["name"]: file["tokens"] * self._item for entry in self.splits.values() for file in entry["files"]}
        for path in self.shards.glob("*.bin"):
            if path.name in sizes:
                os.truncate(path, sizes[path.name])
            else:
                path.unlink()

    def _restore_from(self, lines: IO[bytes]) -> int:
        """Count the parts that are whole; returns the size of their lines and the first, 0 if there is none."""
        first = lines.readline()
        recipe, good = _parsed(first), len(first)
        for line in lines:
            record = _parsed(line)
            if recipe is None or record is None:
                break
            if recipe != self.recipe:
                raise self._other("where " + ", ".join(f"{name} was {recipe.get(name)!r} and is {self.recipe[name]!r}"
                                            for name in self.recipe if recipe.get(name) != self.recipe[name]))
            tokens = self._read(record)
            if sha256(tokens).hexdigest() != record["tokens"]:
                break
            self._count(record, tokens)
            good += len(line)
        return good if self.parts else 0

    def _read(self, record: Record) -> bytes:
        """The tokens of the part that follows those counted, as far as they are there."""
        files = self.splits.get(record["split"], {"files": []})["files"]
        held = {file["name"]: file["tokens"] * self._item for file in files}
        tokens = b""
        for name, count in record["files"]:
            if (self.shards / name).is_file():
                with (self.shards / name).open("rb") as file:
                    file.seek(held.get(name, 0))
                    tokens += file.read(count * self._item)
        return tokens

    def _records(self, count: int) -> Iterator[Record]:
        """The first `count` parts, in order."""
        if count:
            with self.file.open("rb") as lines:
                next(lines)
                for _ in range(count):
                    yield json.loads(next(lines))

    def _other(self, difference: str) -> ValueError:
        return ValueError(f"{self.place} holds the start of another build, {difference}: go on with the documents and "
                          "the tokenizer of that one, or start over with fresh=True (--fresh)")

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()


def _parsed(line: bytes) -> Record | None:
    """A line of the journal; None for one that isn't whole."""
    try:
        return dict(json.loads(line)) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _locked(path: Path, target: Path) -> IO[str] | None:
    """The file at `path`, locked until it is closed or this process dies; None where there are no such locks."""
    try:
        import fcntl
    except ImportError:    # Windows
        return None
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BlockingIOError(errno.EWOULDBLOCK, "another process builds these shards: wait for it, or stop it",
                              str(target)) from None
    except OSError:    # a file system that can't lock
        file.close()
        return None
    return file
