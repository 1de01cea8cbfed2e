"""Pretokenization: the pattern that cuts text into words before BPE, and a split in which a faster one finds them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from tinylib.checks import UserError

PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
           r"|\s*[\r\n]|\s+(?!\S)|\s+")
"""Words of a text, across whose borders BPE never merges: GPT-4's pattern with at most two digits.

Source: nanochat, `nanochat/tokenizer.py`, unchanged from October 2025 to today.
"""

PLAIN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+"
"""PATTERN without look-ahead: the same words in the parts of `split_at_blanks`, twice as fast, for runs of any length.

Look-ahead makes the regular expressions of tiktoken and rustbpe backtrack, and a long run overflows their stack;
without it they compile to an automaton.  `?+` and `++` mean `?` and `+` where nothing that follows could use what they
give back.
"""

_BLANKS = "\t\x0b\x0c\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200b))) + "\u2028\u2029\u202f\u205f\u3000"
"""`\\s` of the regular expressions of tiktoken and rustbpe, without space, carriage return and line feed."""
_BLANK_RUN = re.compile(f"[ {_BLANKS}]{{2,}}+")
_SPACE_RUN = re.compile("  +")


def words(text: str) -> list[str]:
    """The words that PATTERN finds; merges stay inside a word, so no token is longer than its word.

    >>> words("don't add 12345")
    ['don', "'t", ' add', ' ', '12', '34', '5']
    """
    import regex  # tiktoken brings it

    return regex.findall(PATTERN, text)


def split_at_blanks(text: str) -> list[str]:
    """Parts of `text` in which PLAIN finds the words that PATTERN finds in the whole.

    Look-ahead decides one thing only: the last blank of a run belongs to the word after it.  So a part begins there.

    >>> split_at_blanks("if x:    return")
    ['if x:   ', ' return']
    """
    rare = any(blank in text for blank in _BLANKS)
    if not rare and "  " not in text:
        return [text]
    runs = (_BLANK_RUN if rare else _SPACE_RUN).finditer(text)
    cuts = [run.end() - 1 for run in runs if run.end() < len(text) and text[run.end()] not in "\r\n"]
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]


def batch_texts(texts: Iterable[str], characters: int = 4_000_000) -> Iterator[list[str]]:
    """Lists of texts with about `characters` characters together, so that memory doesn't grow with the number of texts.

    >>> list(batch_texts(["ab", "cd", "ef"], characters=4))
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


def check_text(text: str) -> str:
    """`text`; UserError for a lone surrogate, which UTF-8 can't encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"text holds the lone surrogate {text[error.start]!a} at character {error.start}, which is no "
                        "character: read the file with errors='replace', or drop it") from None
    return text
