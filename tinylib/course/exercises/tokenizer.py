"""Checkers of notebook 02: tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from tinylib.course.exercises import checker, given
from tinylib.tokenizer import Tokenizer


@checker("02.1")
def most_common_pair(answer: Callable[[list[int]], tuple[int, int]]) -> None:
    """The most frequent pair of neighbours; any of several that are equally frequent."""
    for text in ("the cat sat on the mat", "aaab", "low lower lowest slow", "ab"):
        ids = list(text.encode())
        counts, found = Counter(pairwise(ids)), tuple(given(answer(list(ids))))
        assert found in counts, f"the pair {found!r} does not occur in {text!r}: return two neighbouring ids"
        most = max(counts.values())
        assert counts[found] == most, f"in {text!r} your pair occurs {counts[found]} times, another one {most} times"


@checker("02.2")
def merged(answer: Callable[[list[int], tuple[int, int], int], list[int]]) -> None:
    """A merge: every occurrence of the pair replaced by the new id, from left to right."""
    cases = [([1, 2, 3, 1, 2], (1, 2), 9, [9, 3, 9]), ([5, 5, 5], (5, 5), 9, [9, 5]), ([], (1, 2), 9, []),
             ([1, 1, 2], (1, 2), 9, [1, 9]), ([2, 1], (1, 2), 9, [2, 1]), ([1, 2, 2], (1, 2), 9, [9, 2])]
    for ids, pair, new, right in cases:
        argument = list(ids)
        found = given(answer(argument, pair, new))
        assert list(found) == right, f"merging {pair} into {new} turns {ids} into {right}, not {list(found)}"
        assert argument == ids, "your function changed the list it was given: build a new one"


@checker("02.3")
def encode_word(answer: Callable[[bytes, list[tuple[int, int]]], list[int]]) -> None:
    """BPE encoding of one pre-token, compared with tiktoken."""
    text = "the lowest and the newest, the widest of the widest: low, lower, lowest; new, newer, newest; wide, wider"
    tokenizer = Tokenizer.train([text], vocab_size=290)
    for word in ("lowest", "widest", "the", "w", "newness", "thewidest", "été"):    # each is one pre-token
        right, found = tokenizer.encode(word), given(answer(word.encode(), tokenizer.merges()))
        assert list(found) == right, f"tiktoken encodes {word!r} as {right}, your function as {list(found)}"
