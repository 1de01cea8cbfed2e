"""Where text is cut before BPE: the pattern of words, a faster twin of it, and pieces of a size that suits memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
           r"|\s*[\r\n]|\s+(?!\S)|\s+")
"""How text is cut into words before BPE, which never merges across a cut: GPT-4's pattern with at most two digits.

Source: nanochat, `nanochat/tokenizer.py`, unchanged from October 2025 to today.
"""

PLAIN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+"
"""PATTERN without look-ahead: the same words on what `parts` returns, about twice as fast, and for runs of any length.

A pattern with look-ahead makes the regular expressions of tiktoken and rustbpe backtrack, on a stack; without it they
compile to an automaton.  `?+` and `++` mean `?` and `+` where nothing that follows could use what they would give back.
"""

_BLANKS = "\t\x0b\x0c\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200b))) + "\u2028\u2029\u202f\u205f\u3000"
"""What `\\s` is to the regular expressions of tiktoken and rustbpe, but for space, carriage return and line feed."""
_RUN = re.compile(f"[ {_BLANKS}]{{2,}}+")
_SPACES = re.compile("  +")
_SEAM = re.compile("(?<=[!-~]) ")
_PORTION = 65_536


def words(text: str) -> list[str]:
    """What PATTERN cuts `text` into; merges stay inside a word, so no token is longer than the word that it is in.

    >>> words("don't add 12345")
    ['don', "'t", ' add', ' ', '12', '34', '5']
    """
    import regex  # tiktoken brings it

    return regex.findall(PATTERN, text)


def parts(text: str) -> list[str]:
    """`text` in parts in which PLAIN finds the words that PATTERN finds in the whole.

    All that look-ahead decides is that the last blank before a word goes with it, so a part begins there.

    >>> parts("if x:    return")
    ['if x:   ', ' return']
    """
    rare = any(blank in text for blank in _BLANKS)
    if not rare and "  " not in text:
        return [text]
    runs = (_RUN if rare else _SPACES).finditer(text)
    cuts = [run.end() - 1 for run in runs if run.end() < len(text) and text[run.end()] not in "\r\n"]
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


def portions(text: str) -> Iterator[str]:
    """A long text in portions of about `_PORTION` characters, each of which begins where a word begins.

    A space after a printable ASCII character always begins a word; a text without any stays whole.
    """
    start = 0
    while (seam := _SEAM.search(text, start + _PORTION)) is not None:
        yield text[start:seam.start()]
        start = seam.start()
    yield text[start:] if start else text


def batched(texts: Iterable[str], characters: int = 4_000_000) -> Iterator[list[str]]:
    """`texts` in lists of about `characters` characters, so that memory doesn't grow with the number of texts.

    >>> list(batched(["ab", "cd", "ef"], characters=4))
    [['ab', 'cd'], ['ef']]
    """
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text) + 1
        if size > characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def checked(text: str) -> str:
    """`text`; ValueError for a lone surrogate, which is no character."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text holds the lone surrogate {text[error.start]!a} at character {error.start}, which "
                             "is no character: read the file with errors='replace', or drop it") from None
    return text
