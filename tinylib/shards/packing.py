"""Conversations to token files: packed whole into windows of the model's context, with a loss mask.

Each window begins with a conversation and is filled with the largest that still fit (best fit); the rest is padding.
Nothing more is stored, because the special tokens tell it: `in_answer` the loss mask, `Shards.segments` the
conversations, which attention doesn't cross.

Source: nanochat, https://github.com/karpathy/nanochat, scripts/chat_sft.py, its best-fit packing; there
attention crosses the conversations of a row.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from tinylib import checks, files
from tinylib.checks import UserError
from tinylib.corpus import Document
from tinylib.shards.building import SHARD_FILES, TokenFiles, dtype_of
from tinylib.shards.reading import Shards
from tinylib.tokenizer import Tokenizer, in_answer, render

_WAITING = 1_000    # conversations among which the next one of a window is chosen
_AT_ONCE = 256    # windows that are written together


def build_conversations(documents: Mapping[str, Iterable[Document]], tokenizer: Tokenizer,
                        folder: str | os.PathLike[str], seq_len: int) -> Shards:
    """Render and pack the conversations of each split into windows of `seq_len`, atomically; opens the first split.

    A document's text is JSON, a list of messages.  A conversation longer than a window is cut at its end, and left out
    if that leaves no token of an answer.  `train` reads the folder as it reads others, at this `seq_len` only.  Raises
    UserError, which names the document, if one is no conversation, and if a split has none.
    """
    checks.raise_if("build_conversations", [
        checks.check_int("seq_len", seq_len, least=8),
        None if documents else "documents has no split: name one, such as train"])
    with files.write_folder(Path(folder).resolve(), SHARD_FILES) as out:
        tokenizer.save(out / "tokenizer")
        token_files = TokenFiles(out, 100_000_000)
        for split, some in documents.items():
            windows = _pack(_rendered(some, tokenizer, seq_len), seq_len, tokenizer.bos)
            while part := list(islice(windows, _AT_ONCE)):
                ids = np.concatenate([window for window, _ in part], dtype=dtype_of(tokenizer), casting="unsafe")
                text = tokenizer.decode(ids[ids < tokenizer.bos])
                token_files.append(split, np.full(len(part), seq_len), ids, documents=sum(count for _, count in part),
                                   characters=len(text), bytes=len(text.encode()))
            if split not in token_files.splits:
                raise UserError(f"split {split!r} has no conversation with an answer that fits into seq_len={seq_len}: "
                                "give more of them, or a longer context")
        files.write_json(out / "index.json", {
            "version": 1, "dtype": dtype_of(tokenizer).name, "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint, "packed": seq_len, "splits": token_files.splits})
    return Shards(folder, next(iter(documents)))


def _rendered(documents: Iterable[Document], tokenizer: Tokenizer, seq_len: int) -> Iterator[list[int]]:
    """The ids of each conversation that has a target, cut after `seq_len`."""
    for document in documents:
        try:
            ids = render(tokenizer, json.loads(document.text))[:seq_len]
        except (ValueError, UserError) as error:
            raise UserError(f"{document.name} is no conversation: {error}") from None
        if in_answer(tokenizer, np.array([ids[:-1]])).any():
            yield ids


def _pack(conversations: Iterator[list[int]], seq_len: int, padding: int) -> Iterator[tuple[list[int], int]]:
    """Windows of `seq_len` ids, and the number of conversations in each."""
    waiting = sorted(islice(conversations, _WAITING), key=len)
    while waiting:
        window, count = [], 0
        while (place := bisect_right(waiting, seq_len - len(window), key=len)) > 0:
            window += waiting.pop(place - 1)
            count += 1
            for following in islice(conversations, 1):
                insort(waiting, following, key=len)
        yield window + [padding] * (seq_len - len(window)), count
