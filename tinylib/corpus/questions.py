"""Question and answer pairs about Python's modules, classes and functions, made of the documentation on this machine.

Each is a conversation of one or two questions about one thing; the second one's answer may stand in the conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from tinylib.corpus.reading import Document
from tinylib.corpus.split import digest

_SENTENCE = re.compile(r"[A-Z][^.!?`:>|*]*(?:\.\w[^.!?`:>|*]*)*[.](?=\s|$)")
_LEAST, _MOST = 20, 160    # characters of an answer


def conversations(module: str, entries: Iterable[tuple[str, str]]) -> Iterator[Document]:
    """Conversations about a module, from the headings and docstrings of `documentation`; text is JSON of messages.

    Three about each thing whose docstring begins with a sentence: what it does, how it is called, where it is.  Private
    names are left out.

    >>> first, *_ = conversations("pathlib", [("Path.exists(self)", "Whether this path exists.")])
    >>> [message["content"] for message in json.loads(first.text)]
    ['What does `pathlib.Path.exists` do?', 'Whether this path exists.', 'Which module is it in?', '`pathlib`']
    """
    for heading, text in entries:
        found = _SENTENCE.match(" ".join(text.split()))
        name = re.split(r"\(", heading.removeprefix("class "), maxsplit=1)[0]
        if found and _LEAST <= len(found[0]) <= _MOST and not re.search(r"(^|\.)_", f"{module}.{name}"):
            for number, turns in enumerate(_turns(module, name, heading, found[0])):
                yield Document(f"{module}:{name}:{number}", _messages(turns))


def _turns(module: str, name: str, heading: str, sentence: str) -> Iterator[tuple[str, ...]]:
    """Questions and answers in turn."""
    if not name:
        yield f"What is the module `{module}` for?", sentence
    elif heading.startswith("class "):
        yield f"What is `{module}.{name}`?", sentence, "Which module is it in?", f"`{module}`"
        yield f"Which module has the class `{name}`?", f"`{module}`", "What is it?", sentence
    else:
        yield f"What does `{module}.{name}` do?", sentence, "Which module is it in?", f"`{module}`"
        yield f"Which module has `{name}`?", f"`{module}`", "What does it do?", sentence
        if len(heading) <= _MOST:
            yield f"How is `{module}.{name}` called?", f"`{heading}`", "What does it do?", sentence


def _messages(turns: Iterable[str]) -> str:
    return json.dumps([{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)],
                      ensure_ascii=False)


def harvest_questions(modules: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> list[Document]:
    """The conversations about all modules (name and entries of each), of which none is there twice.

    They are sorted by a hash, so that the first part of the corpus is a fair sample.
    """
    unique = {document.text: document for module, entries in modules for document in conversations(module, entries)}
    return sorted(unique.values(), key=lambda document: digest(document.text))
