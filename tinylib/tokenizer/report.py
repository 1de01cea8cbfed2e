"""What a vocabulary makes of texts, what it costs, and which one is the cheapest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinylib import checks, hardware
from tinylib.config import GPTConfig
from tinylib.sizing.counts import flops
from tinylib.tokenizer.pretokenize import batched
from tinylib.tokenizer.samples import kinds
from tinylib.tokenizer.vocabulary import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import tiktoken

VOCAB_SIZES = tuple(2**power for power in range(10, 17))
"""From 1K to 64K."""
GPT_ENCODINGS = {"GPT-2": "gpt2", "GPT-4": "cl100k_base"}
"""Who used it -> its name in tiktoken."""


def compression(tokenizer: Tokenizer | tiktoken.Encoding, texts: Iterable[str]) -> dict[str, float]:
    """How short `texts` become: documents, characters, bytes (UTF-8), tokens, characters and bytes per token.

    >>> tokenizer = Tokenizer.train(["the cat and the hat"], vocab_size=268)
    >>> compression(tokenizer, ["the that"])["characters_per_token"]
    1.6
    """
    total = dict.fromkeys(("documents", "characters", "bytes", "tokens"), 0)
    for batch in batched(texts):
        total["documents"] += len(batch)
        total["characters"] += sum(map(len, batch))
        total["bytes"] += sum(len(text.encode()) for text in batch)
        total["tokens"] += sum(_lengths(tokenizer, batch))
    tokens = max(total["tokens"], 1)
    return total | {"characters_per_token": total["characters"] / tokens, "bytes_per_token": total["bytes"] / tokens}


def _lengths(tokenizer: Tokenizer | tiktoken.Encoding, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, in which nothing is special."""
    if isinstance(tokenizer, Tokenizer):
        return [len(ids) for ids in tokenizer.encode_batch(texts)]
    with ThreadPoolExecutor(hardware.cores()) as pool:
        return [len(ids) for ids in pool.map(tokenizer.encode_ordinary, texts)]


def _vocab_size(tokenizer: Tokenizer | tiktoken.Encoding) -> int:
    return tokenizer.vocab_size if isinstance(tokenizer, Tokenizer) else tokenizer.n_vocab


def known_encodings() -> tuple[dict[str, tiktoken.Encoding], str]:
    """The encodings of GPT-2 and GPT-4 that tiktoken has in its cache, and a line on what is missing; no network."""
    import tiktoken
    import tiktoken.load

    found, fetch = {}, tiktoken.load.read_file
    tiktoken.load.read_file = _no_network
    try:
        for user, name in GPT_ENCODINGS.items():
            try:
                found[user] = tiktoken.get_encoding(name)
            except OSError:
                continue
    finally:
        tiktoken.load.read_file = fetch
    missing = [user for user in GPT_ENCODINGS if user not in found]
    calls = "; ".join(f"tiktoken.get_encoding({GPT_ENCODINGS[user]!r})" for user in missing)
    note = (f"no comparison with {' and '.join(missing)}, not in tiktoken's cache: with a network, fetch it by "
            f'python -c "import tiktoken; {calls}"')
    return found, note if missing else ""


def _no_network(path: str) -> bytes:
    raise FileNotFoundError(f"{path} is not in tiktoken's cache")


def by_kind(tokenizers: Mapping[str, Tokenizer | tiktoken.Encoding], texts: Mapping[str, Iterable[str]]
            ) -> pd.DataFrame:
    """A row for each kind of text and tokenizer: the columns of `compression`, and the vocabulary's size.

    >>> tokenizer = Tokenizer.train(["the cat and the hat"], vocab_size=268)
    >>> table = by_kind({"ours": tokenizer}, {"words": ["the hat"], "numbers": ["12 34"]})
    >>> table[["kind", "tokenizer", "tokens", "characters_per_token"]].values.tolist()
    [['words', 'ours', 4, 1.75], ['numbers', 'ours', 5, 1.0]]
    """
    import pandas as pd

    rows = []
    for kind, some in texts.items():
        documents = list(some)
        rows += [{"kind": kind, "tokenizer": name, "vocab_size": _vocab_size(tokenizer)}
                 | compression(tokenizer, documents) for name, tokenizer in tokenizers.items()]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Decision:
    """The vocabulary with which the same blocks read the same text with the fewest FLOPs."""

    vocab_size: int
    """The cheapest, between the measured sizes too."""
    low: int
    high: int
    """95 % of the resampled sets of documents put the cheapest between these; the family's training text is fixed."""
    flat: tuple[int, int]
    """From here to there no vocabulary costs 1 % more than the cheapest."""
    at_edge: bool
    """Whether the cheapest is the smallest or the largest that was measured, so that others may be cheaper."""

    def __str__(self) -> str:
        edge = ", at the edge of what was measured" if self.at_edge else ""
        return (f"cheapest vocabulary: {self.vocab_size:,} (95 % of resampled documents: {self.low:,} to {self.high:,})"
                f"{edge}; from {self.flat[0]:,} to {self.flat[1]:,} none costs 1 % more")


@dataclass(frozen=True)
class Curve:
    """What vocabularies of one family make of the same documents, and what that does to a model.

    V vocabularies, N documents.  Vocabularies are compared at equal work: the same blocks read the same bytes, and
    each token sees the same bytes of context.  That stands for quality and is not quality: a larger vocabulary also
    has more parameters to remember with, which only training can weigh, in bits per byte.
    """

    vocab_sizes: tuple[int, ...]
    tokens_VN: np.ndarray
    characters_N: np.ndarray
    bytes_N: np.ndarray

    def bytes_per_token(self, vocab_size: Any) -> Any:
        """Bytes that a token of `vocab_size` covers; between the measured sizes as a smooth curve goes."""
        import numpy as np

        return np.exp(-self._fit(self.tokens_VN.sum(1) / self.bytes_N.sum())(np.log2(vocab_size)))

    def table(self, config: GPTConfig, text_bytes: float = 1e9) -> pd.DataFrame:
        """A row for each vocabulary in the place of the one of `config`: what it gives, costs, and does to the plan.

        `tokens` and `flops` are those of training on `text_bytes` of text; `cost` is relative to the cheapest row.
        """
        import pandas as pd

        rows, sizes = {}, self.tokens_VN.sum(1)
        for vocab_size, tokens in zip(self.vocab_sizes, sizes, strict=True):
            covers = float(self.bytes_N.sum() / tokens)
            context = round(self._reach(config) / covers)
            tables = (1 if config.tied else 2) * vocab_size * config.dim
            token = flops(config.depth, config.dim, vocab_size, context)
            rows[vocab_size] = {
                "characters_per_token": float(self.characters_N.sum() / tokens), "bytes_per_token": covers,
                "embedding_parameters": tables, "embedding_percent": 100 * tables / (tables + _blocks(config)),
                "context": context, "tokens": text_bytes / covers, "flops_per_token": token,
                "flops": token * text_bytes / covers}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("vocab_size")
        return table.assign(cost=table["flops"] / table["flops"].min())

    def cheapest(self, config: GPTConfig, resamples: int = 1_000, seed: int = 0) -> Decision:
        """The vocabulary that costs the blocks of `config` the fewest FLOPs a byte; bootstrap over documents."""
        import numpy as np

        checks.raise_if("Curve.cheapest", [checks.check_int("resamples", resamples)])
        chance, count = np.random.default_rng(seed), len(self.bytes_N)
        drawn = (np.bincount(chance.integers(count, size=count), minlength=count) for _ in range(resamples))
        per_byte_VR = np.array([self.tokens_VN @ weights_N / (self.bytes_N @ weights_N)
                                for weights_N in itertools.chain([np.ones(count, int)], drawn)]).T
        octaves = np.log2(self.vocab_sizes[-1] / self.vocab_sizes[0])
        size_F = np.geomspace(self.vocab_sizes[0], self.vocab_sizes[-1], round(100 * octaves) + 1)
        per_byte_RF = np.exp(self._fit(per_byte_VR)(np.log2(size_F))).T
        context_RF = self._reach(config) * per_byte_RF
        cost_RF = flops(config.depth, config.dim, size_F, context_RF) * per_byte_RF
        best_R = cost_RF.argmin(1)
        low, high = np.quantile(size_F[best_R[1:]], (0.025, 0.975))
        flat_F = size_F[cost_RF[0] <= 1.01 * cost_RF[0].min()]
        return Decision(round(size_F[best_R[0]]), round(low), round(high), (round(flat_F[0]), round(flat_F[-1])),
                        bool(best_R[0] in (0, len(size_F) - 1)))

    def _fit(self, per_byte_V: np.ndarray) -> Any:
        """ln(tokens per byte) as a smooth function of log2(V); further axes are further curves."""
        import numpy as np
        from scipy.interpolate import PchipInterpolator

        if len(self.vocab_sizes) < 2:
            raise ValueError(f"vocab_sizes={self.vocab_sizes} are too few for a curve: measure two or more")
        return PchipInterpolator(np.log2(self.vocab_sizes), np.log(per_byte_V))

    def _reach(self, config: GPTConfig) -> float:
        """Bytes of context of `config` with its own vocabulary, or with the nearest that was measured."""
        nearest = min(max(config.vocab_size, self.vocab_sizes[0]), self.vocab_sizes[-1])
        return config.seq_len * float(self.bytes_per_token(nearest))


def _blocks(config: GPTConfig) -> int:
    return 12 * config.depth * config.dim**2


def curve(tokenizer: Tokenizer, texts: Iterable[str], vocab_sizes: Sequence[int] = VOCAB_SIZES) -> Curve:
    """Encode `texts` with the beginnings of `tokenizer` that have `vocab_sizes` ids; those it can't fill are left out.

    Its own size is one of them.
    """
    import numpy as np

    sizes = sorted({size for size in vocab_sizes if size < tokenizer.vocab_size} | {tokenizer.vocab_size})
    documents = list(texts)
    tokens_VN = np.array([_lengths(tokenizer.truncate(size), documents) for size in sizes])
    return Curve(tuple(sizes), tokens_VN, np.array([len(text) for text in documents]),
                 np.array([len(text.encode()) for text in documents]))


@dataclass(frozen=True)
class Report:
    """What a tokenizer makes of held-out text, beside what others make of it; `print` it, or take its parts."""

    held_out: dict[str, float]
    """`compression` of the held-out documents."""
    kinds: pd.DataFrame
    vocabularies: pd.DataFrame
    decision: Decision
    note: str
    """What could not be compared, and how it could; "" if nothing."""

    def __str__(self) -> str:
        wide = self.kinds.pivot_table(index="kind", columns="tokenizer", sort=False,
                                      values=["characters_per_token", "bytes_per_token"])
        thousands = self.vocabularies.assign(
            **{name: self.vocabularies[name].map("{:,.0f}".format) for name in ("embedding_parameters", "context")},
            **{name: self.vocabularies[name].map("{:.3g}".format) for name in ("tokens", "flops_per_token", "flops")})
        texts = [wide.round(2).to_string(), self.note, thousands.round(2).to_string(), str(self.decision)]
        return "\n\n".join(filter(None, texts))

    def facts(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return self.held_out | {"kinds": self.kinds.to_dict("records"), "decision": self.decision, "note": self.note,
                                "vocabularies": self.vocabularies.reset_index().to_dict("records")}


def report(tokenizer: Tokenizer, training: Iterable[str], held_out: Iterable[str], config: GPTConfig, *,
           largest: int = VOCAB_SIZES[-1], max_chars: int = 200_000_000, characters: int = 4_000_000) -> Report:
    """Measure `tokenizer` by kind of text, and what other vocabularies would do to the model of `config`.

    `training` trains the family that is compared, up to `largest` ids or what `max_chars` of it fill; about
    `characters` of `held_out` are measured.  Where `held_out` is `training`'s own text, the family looks too good.
    """
    documents = next(batched(held_out, characters), [])
    if not documents:
        raise ValueError("held_out has no documents: a corpus of a few is too small to be split")
    others, note = known_encodings()
    family = Tokenizer.train(training, largest, max_chars=max_chars, fewer=True)
    measured = curve(family, documents, (*VOCAB_SIZES, tokenizer.vocab_size))
    return Report(compression(tokenizer, documents), by_kind({"ours": tokenizer, **others}, kinds(documents)),
                  measured.table(config), measured.cheapest(config), note)
