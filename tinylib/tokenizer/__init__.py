"""Text to ids and back: byte-level BPE, trained with rustbpe, encoding with tiktoken, saved as readable JSON.

Two rules, the same in training and in encoding:

- A lone surrogate is no text: it is refused with a ValueError that names its place.
- A run of characters may be as long as it likes.  On a long run of whitespace the pattern's look-ahead overflows the
  stacks of tiktoken and rustbpe, so they get a text in parts that need none; the words are the same (`cutting`).

`vocabulary` holds the tokenizer, `report` what it makes of texts, `samples` the texts that any machine has.
"""

from tinylib.tokenizer.pretokenize import PATTERN, batched, words
from tinylib.tokenizer.report import (
    VOCAB_SIZES,
    Curve,
    Decision,
    Report,
    by_kind,
    compression,
    curve,
    known_encodings,
    report,
)
from tinylib.tokenizer.samples import ARTICLE_1, kinds
from tinylib.tokenizer.vocabulary import SPECIAL_TOKENS, Tokenizer

__all__ = ["ARTICLE_1", "PATTERN", "SPECIAL_TOKENS", "VOCAB_SIZES", "Curve", "Decision", "Report", "Tokenizer",
           "batched", "by_kind", "compression", "curve", "kinds", "known_encodings", "report", "words"]
