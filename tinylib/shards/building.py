"""Documents to token files: encoded in parallel, appended in one order, gone on with after a kill.

Text goes through in parts of about PART_CHARACTERS.  Processes encode them in any order; their ids are appended in the
order of the documents.  So the files are the same with any number of processes and of interruptions.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tinylib import checks, hardware
from tinylib.shards.journal import Journal
from tinylib.shards.reading import IDS, Shards
from tinylib.shards.workers import Encoded, Workers, encode, pack
from tinylib.tokenizer import Tokenizer, batched

PART_CHARACTERS = 1_000_000
"""What is encoded at once, and hashed, appended and kept as a whole."""
SMALL_CHARACTERS = 4_000_000
"""So much text is encoded in this process: others would hardly have started by then."""


def build(documents: Mapping[str, Iterable[str]], tokenizer: Tokenizer, folder: str | os.PathLike[str], *,
          tokens_per_file: int = 100_000_000, processes: int | None = None, fresh: bool = False,
          progress: bool = False) -> Shards:
    """Encode the documents of each split into `folder`, which appears whole or not at all; opens the first split.

    Streams: memory doesn't grow with the corpus.  A file is closed after the document with which it reaches
    `tokens_per_file`.  `processes` encode, by default one a core.  After a build that was killed, the next one with the
    same documents and tokenizer goes on from what is whole; `fresh` starts over.  Raises ValueError for a split without
    documents, a lone surrogate and the leftovers of another build, OSError for a full disk and while another process
    builds there.
    """
    processes = hardware.cores() if processes is None else processes
    checks.raise_if("build", [checks.check_int("tokens_per_file", tokens_per_file), checks.check_int("processes", processes),
                           None if documents else "documents has no split: name one, such as train"])
    dtype = np.dtype(next(name for name, ids in IDS.items() if tokenizer.vocab_size <= ids))
    recipe = {"tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "dtype": dtype.name,
              "tokens_per_file": tokens_per_file, "part_characters": PART_CHARACTERS}
    streams = {split: _begun(split, stream) for split, stream in documents.items()}
    with Journal(Path(folder), recipe, fresh) as journal:
        tokenizer.save(journal.shards / "tokenizer")
        with Workers(journal.shards / "tokenizer", dtype, processes) as workers:
            _encode(_parts(streams, tokenizer), _Encoder(tokenizer, dtype, workers), journal, progress)
        journal.finish()
    return Shards(folder, next(iter(documents)))


def _begun(split: str, stream: Iterable[str]) -> Iterator[str]:
    """`stream`, known to hold something before hours go into the splits before it."""
    texts = iter(stream)
    first = next(texts, None)
    if first is None:
        raise ValueError(f"split {split!r} has no documents: a corpus of a few is too small to be split")
    return chain([first], texts)


@dataclass(frozen=True)
class _Part:
    """Some documents of a split; `message` is their text as a process takes it."""

    split: str
    texts: list[str]
    message: bytes

    def facts(self) -> dict[str, Any]:
        """The part without its text: counts and a hash."""
        return {"split": self.split, "documents": len(self.texts), "characters": sum(map(len, self.texts)),
                "bytes": len(self.message) - 8 * (1 + len(self.texts)), "text": sha256(self.message).hexdigest()}


def _parts(streams: Mapping[str, Iterable[str]], tokenizer: Tokenizer) -> Iterator[_Part]:
    for split, stream in streams.items():
        for texts in batched(stream, PART_CHARACTERS):
            try:
                yield _Part(split, texts, pack(texts))
            except UnicodeEncodeError:
                tokenizer.encode_batch(texts)    # says where the surrogate is
                raise


@dataclass
class _Encoder:
    """Encodes the first parts here and the others in processes, for which a small corpus is too small."""

    tokenizer: Tokenizer
    dtype: np.dtype
    workers: Workers
    _seen: int = 0

    def submit(self, part: _Part) -> Future[Encoded]:
        self._seen += len(part.message)
        if self.workers.processes > 1 and self._seen > SMALL_CHARACTERS:
            return self.workers.submit(part.message)
        done: Future[Encoded] = Future()
        done.set_result(encode(part.texts, self.tokenizer, self.dtype))
        return done


def _encode(parts: Iterable[_Part], encoder: _Encoder, journal: Journal, progress: bool) -> None:
    """Append each part that isn't there yet; there are always twice as many in work as processes."""
    from tqdm import tqdm

    waiting: deque[tuple[dict[str, Any], Future[Encoded]]] = deque()
    with tqdm(desc="text to shards", unit=" characters", unit_scale=True, mininterval=1, disable=not progress) as bar:
        def take(most: int) -> None:
            while waiting and (len(waiting) > most or waiting[0][1].done()):
                facts, encoded = waiting.popleft()
                journal.append(facts, *encoded.result())
                bar.update(facts["characters"])

        for part in parts:
            facts = part.facts()
            if journal.recall(facts):
                bar.update(facts["characters"])
            else:
                waiting.append((facts, encoder.submit(part)))
                take(2 * encoder.workers.processes)
        take(0)
