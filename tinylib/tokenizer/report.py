"""Compression of texts by a tokenizer, cost of a vocabulary in FLOPs, and the cheapest vocabulary."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylib.checks import UserError
from tinylib.config import GPTConfig
from tinylib.sizing.counts import Shapes, flops_per_token, parameters
from tinylib.tokenizer.pretokenize import batch_texts
from tinylib.tokenizer.vocabulary import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import tiktoken

VOCAB_SIZES = tuple(2**power for power in range(10, 17))
"""From 1K to 64K."""
_STORE = "https://openaipublic.blob.core.windows.net"
_ENCODINGS = {"GPT-2": ("gpt2", f"{_STORE}/gpt-2/encodings/main/vocab.bpe",
                        f"{_STORE}/gpt-2/encodings/main/encoder.json"),
              "GPT-4": ("cl100k_base", f"{_STORE}/encodings/cl100k_base.tiktoken")}
"""Model -> name of its encoding in tiktoken, and the files of it that tiktoken downloads.

Source: tiktoken, `tiktoken_ext/openai_public.py`.
"""


def compression(tokenizer: Tokenizer | tiktoken.Encoding, texts: Iterable[str]) -> dict[str, float]:
    """Compression of `texts`: documents, characters, bytes (UTF-8), tokens, characters and bytes per token.

    >>> tokenizer = Tokenizer.train(["the cat and the hat"], vocab_size=268)
    >>> compression(tokenizer, ["the that"])["characters_per_token"]
    1.6
    """
    total = dict.fromkeys(("documents", "characters", "bytes", "tokens"), 0)
    for batch in batch_texts(texts):
        total["documents"] += len(batch)
        total["characters"] += sum(map(len, batch))
        total["tokens"] += sum(_lengths(tokenizer, batch))
        total["bytes"] += sum(len(text.encode()) for text in batch)
    tokens = max(total["tokens"], 1)
    return total | {"characters_per_token": total["characters"] / tokens, "bytes_per_token": total["bytes"] / tokens}


def _lengths(tokenizer: Tokenizer | tiktoken.Encoding, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text; names of special tokens are plain text."""
    encode = tokenizer.encode_batch if isinstance(tokenizer, Tokenizer) else tokenizer.encode_ordinary_batch
    return list(map(len, encode(texts)))


def known_encodings() -> tuple[dict[str, tiktoken.Encoding], str]:
    """The encodings of GPT-2 and GPT-4 that are in tiktoken's cache, and a note on the missing ones; no network."""
    import tiktoken

    # Source: tiktoken, `load.py`, `read_file_cached`.
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default)))
    found, missing = {}, {}
    for model, (name, *addresses) in _ENCODINGS.items():
        if all((folder / hashlib.sha1(address.encode()).hexdigest()).is_file() for address in addresses):
            found[model] = tiktoken.get_encoding(name)
        else:
            missing[model] = f"tiktoken.get_encoding({name!r})"
    note = (f"no comparison with {' and '.join(missing)}, not in tiktoken's cache: with a network, fetch it by "
            f'python -c "import tiktoken; {"; ".join(missing.values())}"')
    return found, note if missing else ""


def by_kind(tokenizers: Mapping[str, Tokenizer | tiktoken.Encoding], texts: Mapping[str, Iterable[str]]
            ) -> pd.DataFrame:
    """Compression by kind of text and tokenizer: the columns of `compression`, and the vocabulary's size.

    >>> tokenizer = Tokenizer.train(["the cat and the hat"], vocab_size=268)
    >>> table = by_kind({"ours": tokenizer}, {"words": ["the hat"], "numbers": ["12 34"]})
    >>> table[["kind", "tokenizer", "tokens", "characters_per_token"]].values.tolist()
    [['words', 'ours', 4, 1.75], ['numbers', 'ours', 5, 1.0]]
    """
    import pandas as pd

    rows = []
    for kind, some in texts.items():
        documents = list(some)
        for name, tokenizer in tokenizers.items():
            vocab_size = tokenizer.vocab_size if isinstance(tokenizer, Tokenizer) else tokenizer.n_vocab
            rows.append({"kind": kind, "tokenizer": name, "vocab_size": vocab_size} | compression(tokenizer, documents))
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Decision:
    """The cheapest vocabulary: with it the same blocks read the same text with the fewest FLOPs."""

    vocab_size: int
    """The cheapest, also between the measured sizes."""
    low: int
    high: int
    """Bounds of a 95% bootstrap confidence interval over documents; the family's training text is fixed."""
    flat: tuple[int, int]
    """Between these no vocabulary costs 1% more than the cheapest."""
    at_edge: bool
    """Whether the cheapest is the smallest or the largest measured, so that one outside may be cheaper."""

    def __str__(self) -> str:
        edge = ", at the edge of what was measured" if self.at_edge else ""
        return (f"cheapest vocabulary: {self.vocab_size:,} (95% of resampled documents: {self.low:,} to {self.high:,})"
                f"{edge}; from {self.flat[0]:,} to {self.flat[1]:,} none costs 1% more")


@dataclass(frozen=True)
class Curve:
    """Compression of the same documents by vocabularies of one family, and their cost in a model.

    V vocabularies, N documents.  Vocabularies are compared at equal work: the same blocks read the same bytes, and
    each token sees the same bytes of context.  That is a proxy for quality: a larger vocabulary also has more
    parameters, whose worth only training shows, in bits per byte.
    """

    vocab_sizes: tuple[int, ...]
    tokens_VN: np.ndarray
    characters_N: np.ndarray
    bytes_N: np.ndarray

    def bytes_per_token(self, vocab_size: Any) -> Any:
        """Bytes per token at `vocab_size`, interpolated between the measured sizes."""
        import numpy as np

        return np.exp(-self._fit(self.tokens_VN.sum(1) / self.bytes_N.sum())(np.log2(vocab_size)))

    def table(self, config: GPTConfig, text_bytes: float = 1e9) -> pd.DataFrame:
        """A row for `config` with each vocabulary in turn: compression, parameters, context, FLOPs.

        `tokens` and `flops` are those of training on `text_bytes` of text; `cost` is relative to the cheapest row.
        """
        import numpy as np
        import pandas as pd

        tokens_V = self.tokens_VN.sum(1)
        covers_V = self.bytes_N.sum() / tokens_V
        context_V = np.round(self._reach(config) / covers_V).astype(int)
        shapes = Shapes(config.depth, config.dim, np.array(self.vocab_sizes), seq_len=context_V, tied=config.tied)
        count, token_V = parameters(shapes), flops_per_token(shapes)
        tables_V, flops_V = count.total - count.blocks, token_V * text_bytes / covers_V
        return pd.DataFrame({
            "characters_per_token": self.characters_N.sum() / tokens_V, "bytes_per_token": covers_V,
            "embedding_parameters": tables_V, "embedding_percent": 100 * tables_V / count.total,
            "context": context_V, "tokens": text_bytes / covers_V, "flops_per_token": token_V,
            "flops": flops_V, "cost": flops_V / flops_V.min()}, index=pd.Index(self.vocab_sizes, name="vocab_size"))

    def cheapest(self, config: GPTConfig) -> Decision:
        """The vocabulary with the fewest FLOPs per byte for the blocks of `config`; bootstrap over documents."""
        import numpy as np

        chance, count = np.random.default_rng(0), len(self.bytes_N)
        drawn = (np.bincount(chance.integers(count, size=count), minlength=count) for _ in range(1_000))
        per_byte_VR = np.array([self.tokens_VN @ weights_N / (self.bytes_N @ weights_N)
                                for weights_N in itertools.chain([np.ones(count, int)], drawn)]).T
        octaves = np.log2(self.vocab_sizes[-1] / self.vocab_sizes[0])
        size_F = np.geomspace(self.vocab_sizes[0], self.vocab_sizes[-1], round(100 * octaves) + 1)
        per_byte_RF = np.exp(self._fit(per_byte_VR)(np.log2(size_F))).T
        context_RF = self._reach(config) * per_byte_RF
        cost_RF = flops_per_token(Shapes(config.depth, config.dim, size_F, seq_len=context_RF)) * per_byte_RF
        best_R = cost_RF.argmin(1)
        low, high = np.quantile(size_F[best_R[1:]], (0.025, 0.975))
        flat_F = size_F[cost_RF[0] <= 1.01 * cost_RF[0].min()]
        return Decision(round(size_F[best_R[0]]), round(low), round(high), (round(flat_F[0]), round(flat_F[-1])),
                        bool(best_R[0] in (0, len(size_F) - 1)))

    def _fit(self, per_byte_V: np.ndarray) -> Any:
        """Monotone cubic interpolation (PCHIP) of ln(tokens per byte) over log2(V); further axes are further curves."""
        import numpy as np
        from scipy.interpolate import PchipInterpolator

        if len(self.vocab_sizes) < 2:
            raise UserError(f"vocab_sizes={self.vocab_sizes} are too few for a curve: measure two or more")
        return PchipInterpolator(np.log2(self.vocab_sizes), np.log(per_byte_V))

    def _reach(self, config: GPTConfig) -> float:
        """Bytes of context of `config` with its own vocabulary, or with the nearest measured one."""
        nearest = min(max(config.vocab_size, self.vocab_sizes[0]), self.vocab_sizes[-1])
        return config.seq_len * float(self.bytes_per_token(nearest))


def curve(tokenizer: Tokenizer, texts: Iterable[str], vocab_sizes: Sequence[int] = VOCAB_SIZES) -> Curve:
    """Measure `tokenizer` truncated to `vocab_sizes`, and whole, on `texts`; sizes that it can't fill are left out."""
    import numpy as np

    sizes = sorted({size for size in vocab_sizes if size < tokenizer.vocab_size} | {tokenizer.vocab_size})
    documents = list(texts)
    tokens_VN = np.array([_lengths(tokenizer.truncate(size), documents) for size in sizes])
    return Curve(tuple(sizes), tokens_VN, np.array([len(text) for text in documents]),
                 np.array([len(text.encode()) for text in documents]))


def report(tokenizer: Tokenizer, training: Iterable[str], held_out: Iterable[str], config: GPTConfig,
           kinds: Mapping[str, Iterable[str]]) -> tuple[dict[str, Any], str]:
    """Compression of `held_out` and further `kinds` of text, and the cost of other vocabularies for `config`.

    Returns facts for JSON and text for people.  The other vocabularies are trained on the first 200 million characters
    of `training`, and the first 4 million of `held_out` are measured.  Raises UserError if `held_out` has no documents;
    if it is part of `training`, the other vocabularies look too good.
    """
    documents = next(batch_texts(held_out), [])
    if not documents:
        raise UserError("held_out has no documents: a corpus of a few is too small to be split")
    others, note = known_encodings()
    table = by_kind({"ours": tokenizer, **others}, {"held out": documents, **kinds})
    family = Tokenizer.train(training, VOCAB_SIZES[-1], max_chars=200_000_000, fewer=True)
    measured = curve(family, documents, (*VOCAB_SIZES, tokenizer.vocab_size))
    decision, costs = measured.cheapest(config), measured.table(config)
    rows = table.to_dict("records")
    facts = rows[0] | {"kinds": rows, "decision": decision, "note": note,
                       "vocabularies": costs.reset_index().to_dict("records")}
    wide = table.pivot_table(index="kind", columns="tokenizer", sort=False,
                             values=["characters_per_token", "bytes_per_token"])
    formats = dict.fromkeys(("embedding_parameters", "context"), "{:,.0f}".format)
    formats |= dict.fromkeys(("tokens", "flops_per_token", "flops"), "{:.3g}".format)
    texts = [wide.round(2).to_string(), note, costs.round(2).to_string(formatters=formats), str(decision)]
    return facts, "\n\n".join(filter(None, texts))
