"""Checkers of notebook 07: chat."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence

from tinylib.chat import overlap
from tinylib.corpus import Document
from tinylib.course.exercises import checker, given


@checker("07.1")
def loss_mask(answer: Callable[[list[int], int, int], Sequence[bool]]) -> None:
    """Loss mask: True for the tokens of a conversation that are learned."""
    for ids, right in (([9, 1, 5, 2, 3, 7, 8, 4], [0, 0, 0, 0, 0, 1, 1, 1]),
                       ([9, 1, 5, 2, 3, 7, 4, 1, 6, 2, 3, 4], [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]),
                       ([9, 1, 5, 2], [0, 0, 0, 0]), ([9, 3, 7], [0, 0, 1])):
        found = [int(value) for value in given(answer(list(ids), 3, 4))]
        assert len(found) == len(ids), f"{len(ids)} tokens need {len(ids)} values, not {len(found)}"
        with_start = [int(value or token == 3) for value, token in zip(right, ids, strict=True)]
        without_end = [int(value and token != 4) for value, token in zip(right, ids, strict=True)]
        assert found == right or found != with_start, (
            "assistant_start (3) is given in the prompt: the model need not learn to say it")
        assert found == right or found != without_end, (
            "assistant_end (4) is learned too: without it an answer never ends")
        assert found == right, f"for {ids}, with start 3 and end 4, it is {right}, not {found}"


@checker("07.2")
def word_overlap(answer: Callable[[str, str], float]) -> None:
    """F1 of the words of an answer, equal to the library's."""
    for text, reference in (("Return the path.", "Return a path."), ("path path path", "path"), ("", "path"),
                            ("The PATH of a file", "a path of the file"), ("one two", "three"), ("", "")):
        found, right = float(given(answer(text, reference))), overlap(text, reference)
        assert abs(found - right) < 1e-9, (
            f"for {text!r} and {reference!r} it is {right:.4f}, not {found:.4f}: a word counts as often as both texts "
            "have it, in lower case; F1 is twice the common words over the words of both")


@checker("07.3")
def newest_turns(answer: Callable[[list[int], int], int]) -> None:
    """Number of the oldest turns that a prompt must leave out."""
    for lengths, room, right in (([5, 5, 5], 15, 0), ([5, 5, 5], 14, 2), ([9, 1, 4, 4, 3], 12, 2),
                                 ([9, 1, 4, 4, 3], 10, 4), ([3], 3, 0)):
        found = given(answer(list(lengths), room))
        assert found != 1 and found % 2 == 0, (
            f"{found} turns left out end with a question without its answer, or begin with an answer: drop pairs")
        assert sum(lengths[found:]) <= room, f"the {len(lengths) - found} turns that stay do not fit: {lengths}, {room}"
        assert found == right, f"for turns of {lengths} tokens and room for {room} it is {right}, not {found}"


@checker("07.4")
def shuffle_answers(answer: Callable[[list[Document], int], Sequence[Document]]) -> None:
    """Conversations whose answers were swapped among questions with the same beginning."""
    def talk(number: int, *turns: str) -> Document:
        return Document(f"m:{number}", json.dumps([{"role": ("user", "assistant")[place % 2], "content": text}
                                                   for place, text in enumerate(turns)]))

    documents = [talk(number, f"What does `f{number}` do?", f"Does {number}.", "Which module is it in?", f"`m{number}`")
                 for number in range(40)]
    found = [json.loads(document.text) for document in given(answer(list(documents), 0))]
    before = [json.loads(document.text) for document in documents]
    assert len(found) == len(before), f"{len(before)} conversations must stay {len(before)}, not {len(found)}"
    for turn in (0, 2):
        assert [some[turn] for some in found] == [some[turn] for some in before], "the questions stay where they are"
    for turn in (1, 3):
        ours, theirs = ([some[turn]["content"] for some in all_] for all_ in (found, before))
        assert Counter(ours) == Counter(theirs), "each answer must be kept, once, for the same kind of question"
        kept = sum(one == other for one, other in zip(ours, theirs, strict=True))
        assert kept < 15, f"{kept} of 40 answers are still with their question: shuffle them"
    again = [json.loads(document.text) for document in answer(list(documents), 0)]
    assert again == found, "the same seed must give the same order"
