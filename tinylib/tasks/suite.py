"""A small benchmark made of any text by code: for languages and corpora without one, and where there is no network."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable
from typing import Any

from tinylib.checks import UserError
from tinylib.tasks.questions import Task

WORDS = range(6, 25)
"""Number of words of a line or sentence that is used."""


def suite(texts: Iterable[str], count: int = 200, seed: int = 0) -> list[Task]:
    """Three tasks of up to `count` items each from the lines and sentences of `texts`, held-out documents.

    "word order", pairs: a line, and the same with two neighboring words swapped.  "next line", multiple choice: which
    of four lines follows; the other three, of about its length, are from other places.  "copied word", language
    modeling: the last word of three lines, which occurred in them before.  The same texts and seed give the same items.
    A task of which the texts hold nothing is left out; UserError if that is all of them.

    >>> [task.name for task in suite(["the first line has six words\\nthe next line has six words"])]
    ['word order']
    """
    generator, documents = random.Random(seed), [_lines(text) for text in texts]
    lines = [line for document in documents for line in document]
    order = [{"sentence_good": line, "sentence_bad": swapped} for line in lines
             if (swapped := _swapped(line, generator)) != line]
    after = [item for document in documents for first, second in itertools.pairwise(document)
             if (item := _choice(first, second, lines, generator))]
    copied = [item for document in documents for three in zip(document, document[1:], document[2:], strict=False)
              if (item := _copied(" ".join(three)))]
    made = [("word order", "pairs", order, 0.5), ("next line", "multiple_choice", after, 0.25),
            ("copied word", "language_modeling", copied, 0.0)]
    if not any(items for _, _, items, _ in made):
        raise UserError(f"the texts hold no sentence of {WORDS.start} to {WORDS.stop - 1} words: use other texts")
    return [Task(name, kind, generator.sample(items, min(count, len(items))), chance)    # type: ignore[arg-type]
            for name, kind, items, chance in made if items]


def _lines(text: str) -> list[str]:
    """The lines or sentences of prose: of a usual number of words, most of them nothing but letters."""
    found = (line.strip() for line in re.split(r"\n|(?<=[.!?])\s+", text))
    return [line for line in found if len(line.split()) in WORDS
            and sum(word.strip(".,;:!?()'\"").isalpha() for word in line.split()) > 0.6 * len(line.split())]


def _swapped(line: str, generator: random.Random) -> str:
    words = line.split()
    places = [place for place in range(1, len(words) - 1) if words[place].lower() != words[place + 1].lower()]
    if places:
        place = generator.choice(places)
        words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words) if places else line


def _choice(first: str, second: str, lines: list[str], generator: random.Random) -> dict[str, Any] | None:
    alike = [line for line in generator.sample(lines, min(60, len(lines)))
             if abs(len(line) - len(second)) <= 8 and line not in (first, second)][:3]
    if len(set(alike)) < 3:
        return None
    gold = generator.randrange(4)
    return {"query": first, "choices": [*alike[:gold], second, *alike[gold:]], "gold": gold}


def _copied(passage: str) -> dict[str, Any] | None:
    before, _, last = passage.rpartition(" ")
    word = re.match(r"[^\W\d_]{4,}", last)
    seen = word is not None and re.search(rf"\b{word[0]}\b", before) is not None
    return {"context": before, "continuation": word[0]} if word and seen else None
