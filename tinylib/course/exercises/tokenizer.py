"""Checkers of notebook 02: tokenizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from tinylib.course.exercises import checker, given
from tinylib.tokenizer import Tokenizer


@checker("02.1")
def most_common_pair(answer: Callable[[dict[bytes, int]], tuple[int, int]]) -> None:
    """The most frequent pair of neighbours in words that occur several times; of equal ones the smallest."""
    for words in ({b"cat": 2, b"mat": 1}, {b"aaab": 1}, {b"low": 1, b"new": 9}, {b"ba": 3, b"ab": 3}):
        counts = Counter({pair: 0 for word in words for pair in pairwise(word)})
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        found = tuple(given(answer(dict(words))))
        assert found in counts, f"the pair {found!r} does not occur in {words}: return two neighbouring bytes"
        most = max(counts.values())
        assert counts[found] == most, f"in {words} your pair occurs {counts[found]} times, another one {most} times"
        assert found == min(pair for pair, times in counts.items() if times == most), (
            f"in {words} a smaller pair than {found} occurs as often: take the smallest of them")


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


@checker("02.4")
def cheapest_vocabulary(answer: Callable[[int, int, float, float, list[int]], int]) -> None:
    """The vocabulary with the fewest FLOPs per byte, of those given."""
    sizes = [256 * 2**power for power in range(9)]
    for depth, dim in ((4, 128), (4, 512), (20, 1280)):
        cost = {size: (12 * depth * dim**2 + size * dim) / (0.62 * math.log(size) - 1.8) for size in sizes}
        found = given(answer(depth, dim, 0.62, -1.8, list(sizes)))
        assert found in cost, f"{found} is none of the vocabularies given"
        assert cost[found] == min(cost.values()), (
            f"for {depth} × {dim}, V = {found:,} costs {cost[found] / min(cost.values()):.2f} times the fewest FLOPs "
            "per byte: divide what a token costs by the bytes that it covers")


@checker("02.5")
def bytes_per_token(answer: Callable[[list[str], list[str], int], float]) -> None:
    """Compression of texts by a vocabulary that other texts made."""
    training = ["the lowest and the newest, the widest of the widest: low, lower, lowest; new, newer, newest"] * 3
    for test in (["the lowest", "new"], ["été, ici", "the widest of the widest of the widest"]):
        tokenizer = Tokenizer.train(training, 290)
        size, count = sum(len(text.encode()) for text in test), sum(len(tokenizer.encode(text)) for text in test)
        found = given(answer(list(training), list(test), 290))
        assert abs(found - size / count) < 1e-9, (
            f"{test} should have {size / count:.3f} bytes per token, not {found:.3f}: count UTF-8 bytes, sum over all "
            "texts, and divide once")
