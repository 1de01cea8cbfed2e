"""Byte-level BPE tokenizer: trained with rustbpe, encoding with tiktoken, saved as readable JSON; what it costs.

A lone surrogate is not text: UserError, with its place.  A run of characters may have any length.  On a long run of
whitespace the pattern's look-ahead overflows the stacks of tiktoken and rustbpe, so `pretokenize` gives them parts that
need none; the words are the same.
"""

from tinylib.tokenizer.conversation import Messages, check_messages, in_answer, render, render_prompt
from tinylib.tokenizer.pretokenize import PATTERN, batch_texts, words
from tinylib.tokenizer.report import Curve, Decision, by_kind, compression, curve, known_encodings, report
from tinylib.tokenizer.vocabulary import SPECIAL_TOKENS, Tokenizer

__all__ = ["PATTERN", "SPECIAL_TOKENS", "Curve", "Decision", "Messages", "Tokenizer", "batch_texts", "by_kind",
           "check_messages", "compression", "curve", "in_answer", "known_encodings", "render", "render_prompt",
           "report", "words"]
