"""Conversations as token ids, in nanochat's format: special tokens around each turn, loss on the assistant's tokens.

    <|bos|><|user_start|>question<|user_end|><|assistant_start|>answer<|assistant_end|><|user_start|>…

The text of a turn can't produce a special token.  nanochat's calls of a Python tool are left out.

Source: nanochat, https://github.com/karpathy/nanochat, nanochat/tokenizer.py, `render_conversation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylib.checks import UserError

if TYPE_CHECKING:
    from tinylib.tokenizer.vocabulary import Tokenizer

Messages = Sequence[Mapping[str, str]]
"""Turns of a conversation: `role` user or assistant, in turn, and `content`; a system message may be the first."""


def check_messages(messages: Any) -> Messages:
    """`messages`, a system message joined to the first question; UserError for what is no conversation.

    >>> check_messages([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    [{'role': 'user', 'content': 'Be brief.\\n\\nHi'}]
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"messages={messages!r} is no list of messages: give at least one")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or {str} != {type(message.get(key)) for key in ("role", "content")}:
            raise UserError(f"messages[{place}]={message!r} has no role and content, both text: use "
                            '{"role": "user", "content": "…"}')
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    system = [turns.pop(0)["content"]] if turns[0]["role"] == "system" and turns[1:] else []
    turns[0]["content"] = "\n\n".join([*system, turns[0]["content"]])
    for place, turn in enumerate(turns):
        expected = ("user", "assistant")[place % 2]
        if turn["role"] != expected:
            raise UserError(f"messages[{place + len(system)}].role={turn['role']!r} is not {expected!r}: user and "
                            "assistant take turns, the user first; only a system message may precede them")
    return turns


def render(tokenizer: Tokenizer, messages: Messages) -> list[int]:
    """The ids of a conversation, from BOS on.

    >>> from tinylib.tokenizer import Tokenizer
    >>> tokenizer = Tokenizer.train(["the cat"], 266)
    >>> tokenizer.decode(render(tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]))
    '<|bos|><|user_start|>Hi<|user_end|><|assistant_start|>Yo<|assistant_end|>'
    """
    return [tokenizer.bos, *chain.from_iterable(_turn_ids(tokenizer, messages))]


def _turn_ids(tokenizer: Tokenizer, messages: Messages) -> list[list[int]]:
    """The ids of each turn, between its special tokens."""
    special = tokenizer.special_ids
    return [[special[f"<|{turn['role']}_start|>"], *tokenizer.encode(turn["content"]),
             special[f"<|{turn['role']}_end|>"]] for turn in check_messages(messages)]


def render_prompt(tokenizer: Tokenizer, messages: Messages, most: int | None = None) -> list[int]:
    """The ids after which the assistant answers, the last message being the user's; at most `most` of them.

    The oldest question and its answer are left out until the others fit; a system message stays.  Raises UserError if
    the last question alone doesn't fit, or if the last message isn't a question.
    """
    turns = check_messages(messages)
    if turns[-1]["role"] != "user":
        raise UserError(f"messages[-1].role={turns[-1]['role']!r} leaves nothing to answer: end with a user's message")
    system = [messages[0]] if messages[0]["role"] == "system" else []
    each, first = _turn_ids(tokenizer, turns), 0
    size = sum(map(len, each)) + 2
    while most is not None and size > most:
        if len(each) - first == 1:
            raise UserError(f"the question has {size} tokens with its special ones, more than the {most} that fit "
                            "into the context: shorten it")
        first += 2
        if system:
            each[first] = _turn_ids(tokenizer, [*system, turns[first]])[0]
        size = sum(map(len, each[first:])) + 2
    return [tokenizer.bos, *chain.from_iterable(each[first:]), tokenizer.special_ids["<|assistant_start|>"]]


def in_answer(tokenizer: Tokenizer, x_BT: np.ndarray) -> np.ndarray:
    """Loss mask [B, T] of windows that hold whole conversations: True where the next token is the assistant's.

    These are the tokens of its answers and `<|assistant_end|>`, which the model must learn to say;
    `<|assistant_start|>` is given.
    """
    start, end = (x_BT == tokenizer.special_ids[f"<|assistant_{edge}|>"] for edge in ("start", "end"))
    return start.cumsum(1) > end.cumsum(1)
