"""Byte-level BPE tokenizer: trained with rustbpe, encoding with tiktoken, saved as JSON text."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylib import checks, files, hardware
from tinylib.allocator import frugal
from tinylib.checks import UserError
from tinylib.tokenizer.pretokenize import PATTERN, PLAIN, batch_texts, check_text, split_at_blanks

if TYPE_CHECKING:
    import os

    import numpy as np
    import tiktoken
    from tqdm import tqdm

SPECIAL_TOKENS = ("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
                  "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
"""nanochat's special tokens; their ids are the last of the vocabulary and no text can produce them."""

_LEAST = 256 + len(SPECIAL_TOKENS)
_FILE = "vocabulary.json"


class Tokenizer:
    """A vocabulary: 256 bytes, then merges in the order in which they were learned, then the special tokens.

    >>> tokenizer = Tokenizer.train(["the cat and the hat"], vocab_size=268)
    >>> ids = tokenizer.encode("the that")
    >>> [tokenizer.decode([number]) for number in ids], tokenizer.decode(ids)
    (['the', ' ', 't', 'h', 'at'], 'the that')
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        if len(set(tokens)) != len(tokens) or not {bytes([value]) for value in range(256)} <= set(tokens):
            raise UserError("tokens must hold each of the 256 single bytes, without which some text has no ids, and "
                            "nothing twice: train the tokenizer again")
        self.tokens = tuple(tokens)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint!r})"

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, max_chars: int | None = None, fewer: bool = False,
              progress: bool = False) -> Tokenizer:
        """Train BPE on the first `max_chars` of `texts` until there are `vocab_size` ids, special tokens included.

        Streams: memory doesn't grow with the number of texts.  `progress` shows characters a second and, with
        `max_chars`, the time left.  Raises UserError for a text that is no str, a lone surrogate, and where the text
        can't fill the vocabulary unless `fewer` ids are allowed.

        >>> Tokenizer.train(["abc"], vocab_size=1_000)
        Traceback (most recent call last):
            ...
        tinylib.checks.UserError: vocab_size=1000 is more than this text can fill, it reached 267: use at most 267, \
or more text
        """
        checks.raise_if("Tokenizer.train", [
            checks.check_int("vocab_size", vocab_size, _LEAST, why="256 bytes and the special tokens"),
            None if max_chars is None else checks.check_int("max_chars", max_chars)])
        import rustbpe
        from tqdm import tqdm

        trainer = rustbpe.Tokenizer()
        with frugal(), tqdm(desc="counting words", total=max_chars, unit=" characters", unit_scale=True,
                            mininterval=0.5, disable=not progress) as bar:
            parts = _training_text(checks.texts("texts", texts), max_chars, bar)
            trainer.train_from_iterator(parts, vocab_size - len(SPECIAL_TOKENS), buffer_size=256, pattern=PLAIN)
        learned = [bytes(word) for word, _ in trainer.get_mergeable_ranks()]
        reached = len(learned) + len(SPECIAL_TOKENS)
        if reached < vocab_size and not fewer:
            raise UserError(f"vocab_size={vocab_size} is more than this text can fill, it reached {reached}: "
                            f"use at most {reached}, or more text")
        return cls(learned)

    def truncate(self, vocab_size: int) -> Tokenizer:
        """The tokenizer of `vocab_size` ids that a shorter training on the same text would have given.

        BPE is greedy: a merge doesn't depend on how many follow, so a smaller vocabulary is the start of a larger one.

        >>> text = ["the cat and the hat"]
        >>> Tokenizer.train(text, 268).truncate(266).tokens == Tokenizer.train(text, 266).tokens
        True
        """
        checks.raise_if("Tokenizer.truncate", [checks.check_int("vocab_size", vocab_size, _LEAST, self.vocab_size)])
        return Tokenizer(self.tokens[:vocab_size - len(SPECIAL_TOKENS)])

    # Ids

    @property
    def vocab_size(self) -> int:
        """Number of ids (V), special tokens included."""
        return len(self.tokens) + len(SPECIAL_TOKENS)

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Special token -> id; the last ids of the vocabulary."""
        return {name: len(self.tokens) + place for place, name in enumerate(SPECIAL_TOKENS)}

    @property
    def bos(self) -> int:
        """Id of `<|bos|>`, which begins every document."""
        return self.special_ids["<|bos|>"]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Length of each id in bytes of text, int64 of shape (V,); 0 for special tokens.

        The lengths of the ids of a text add up to its length in UTF-8, so bits per byte can be computed exactly.
        """
        import numpy as np

        return np.array([len(word) for word in self.tokens] + [0] * len(SPECIAL_TOKENS), dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides the ids; the shards' index records it, `Shards.check_tokenizer` compares it."""
        return hashlib.sha256(self._to_json().encode()).hexdigest()[:16]

    # Encoding

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them special; UserError for a lone surrogate."""
        parts = map(self._encoding.encode_ordinary, split_at_blanks(check_text(text)))
        return list(itertools.chain.from_iterable(parts))

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of `text` as uint32, a fifth faster than by lists."""
        import numpy as np

        encode, parts = self._encoding.encode_to_numpy, split_at_blanks(check_text(text))
        return np.concatenate([encode(part, disallowed_special=()) for part in parts])

    def encode_batch(self, texts: Iterable[str], threads: int | None = None) -> list[list[int]]:
        """The ids of each text, encoded in `threads` threads (by default one a core)."""
        with ThreadPoolExecutor(threads or hardware.cores()) as pool:
            # In batches, because handing over one text costs as much as encoding it.
            batches = pool.map(lambda some: list(map(self.encode, some)),
                               batch_texts(checks.texts("texts", texts), characters=100_000))
            return list(itertools.chain.from_iterable(batches))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; invalid UTF-8 becomes U+FFFD, special tokens their names."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; UserError for an id outside the vocabulary."""
        numbers = [int(number) for number in ids]
        for number in numbers:
            if not 0 <= number < self.vocab_size:
                raise UserError(f"id={number} is not in this vocabulary: ids go from 0 to {self.vocab_size - 1}")
        return self._encoding.decode_bytes(numbers)

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(name="tinylib", pat_str=PLAIN, special_tokens=self.special_ids,
                                 mergeable_ranks={word: rank for rank, word in enumerate(self.tokens)})

    # Disk

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer into `folder` as JSON text, atomically."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        files.write_text(Path(folder) / _FILE, self._to_json())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in `folder`; FileNotFoundError if there is none, UserError for another format."""
        path = Path(folder) / _FILE
        content = files.read_json(path)
        if content is None:
            raise FileNotFoundError(f"no tokenizer in {folder}: run notebook 02, or python -m tinylib tokenize train")
        for name, ours in (("version", 1), ("pattern", PATTERN), ("special_tokens", list(SPECIAL_TOKENS))):
            if content.get(name) != ours:
                raise UserError(f"{name}={content.get(name)!r} in {path} is not this library's {ours!r}, so ids would "
                                "not be those that were learned: train the tokenizer again")
        return cls([word.encode("utf-8", "surrogateescape") for word in content["tokens"]])

    def _to_json(self) -> str:
        # surrogateescape writes a byte of invalid UTF-8, such as half of an é, as \udc80…\udcff: readable and exact.
        content = {"version": 1, "pattern": PATTERN, "special_tokens": SPECIAL_TOKENS,
                   "tokens": [word.decode("utf-8", "surrogateescape") for word in self.tokens]}
        return json.dumps(content, indent=0) + "\n"

    def save_huggingface(self, path: str | os.PathLike[str]) -> None:
        """Write a `tokenizer.json` for the `tokenizers` library, which gives the same ids.

        There, a special token's name in a text becomes its id unless the reader sets `encode_special_tokens = True`,
        which the file can't set.
        """
        files.write_text(Path(path), json.dumps(self._huggingface(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load_huggingface(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in a `tokenizer.json` that `save_huggingface` wrote; UserError for any other."""
        content = files.read_json(Path(path))
        if content is None:
            raise FileNotFoundError(f"{path} is missing: use a folder that holds a tokenizer.json")
        value = {character: number for number, character in enumerate(_spelling())}
        try:
            vocabulary = content["model"]["vocab"]
            words = sorted(vocabulary.keys() - set(SPECIAL_TOKENS), key=vocabulary.__getitem__)
            found = cls([bytes(value[character] for character in word) for word in words])
            ours = found._huggingface()
            if all(content[part] == ours[part] for part in ("model", "pre_tokenizer", "normalizer")):
                return found
        except (KeyError, TypeError, UserError):
            pass
        raise UserError(f"the tokenizer in {path} is not one that tinylib exports, so ids would not be the same: use "
                        "the model with its own tools")

    def _huggingface(self) -> dict[str, Any]:
        """Content of a `tokenizer.json`."""
        spelling = _spelling()
        spelled = ["".join(spelling[value] for value in word) for word in self.tokens]
        merges = [[spelled[left], spelled[right]] for left, right in self.merges()]
        vocabulary = {word: number for number, word in enumerate(spelled)} | self.special_ids
        added = [{"id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                  "normalized": False, "special": True} for name, number in self.special_ids.items()]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
        model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                 "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                 "vocab": vocabulary, "merges": merges}
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
                "post_processor": None, "decoder": byte_level, "model": model}

    def merges(self) -> list[tuple[int, int]]:
        """The pair of ids that each merge joins, in the order in which they were learned.

        >>> tokenizer = Tokenizer.train(["the cat and the hat"], vocab_size=268)
        >>> [tokenizer.decode(pair) for pair in tokenizer.merges()]
        ['at', 'he', 'the']
        """
        ranks = {word: rank for rank, word in enumerate(self.tokens)}
        return [_parents(word, ranks) for word in self.tokens if len(word) > 1]


def _training_text(texts: Iterable[str], max_chars: int | None, bar: tqdm[Any]) -> Iterator[str]:
    """The first `max_chars` of `texts` in parts, whose words the trainer counts."""
    left = max_chars or sys.maxsize
    for text in texts:
        text = text[:left]
        yield from split_at_blanks(check_text(text))
        bar.update(len(text))
        left -= len(text)
        if left == 0:
            break
    bar.set_description("merging pairs")


def _parents(word: bytes, ranks: dict[bytes, int]) -> tuple[int, int]:
    """The two ids that remain of `word` when BPE applies the earlier merges only."""
    parts = [bytes([value]) for value in word]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        best = min(range(len(joined)), key=joined.__getitem__)
        parts[best:best + 2] = [parts[best] + parts[best + 1]]
    return ranks[parts[0]], ranks[parts[1]]


def _spelling() -> list[str]:
    """Byte -> character: printable Latin-1 as itself, other bytes as U+0100 and the following.

    >>> "".join(_spelling()[value] for value in " é".encode())
    'ĠÃ©'

    Source: GPT-2, `encoder.py`, `bytes_to_unicode`.
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = itertools.count(256)
    return [chr(value if value in plain else next(moved)) for value in range(256)]
