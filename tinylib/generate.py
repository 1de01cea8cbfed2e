"""Autoregressive sampling with a KV cache: streamed, in batches whose sequences join and leave between tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinylib.checks import UserError, raise_if
from tinylib.decoding import DecodingStep
from tinylib.model import GPT, KVCache
from tinylib.sampling import Sampling

if TYPE_CHECKING:
    from tinylib.tokenizer import Tokenizer


@dataclass(eq=False)
class Request:
    """A sequence that is generated: its ids so far, those of the prompt first."""

    ids: list[int]
    sampling: Sampling
    prompt: int
    """Number of ids of the prompt."""
    generator: torch.Generator

    @property
    def finished(self) -> bool:
        """Whether it has all the tokens that it may have."""
        return len(self.ids) - self.prompt >= self.sampling.max_tokens


class Engine:
    """Continuous batching: up to `max_rows` requests share each forward pass, and may join and leave between two.

    When the context of a request is full, it goes on with the newer half of it.
    """

    def __init__(self, model: GPT, max_rows: int = 16, vocab_size: int | None = None) -> None:
        """Sample ids below `vocab_size` only (None: all); those above are rows of the table that no tokenizer has."""
        self.model, self.max_rows, self.vocab_size = model, max_rows, vocab_size
        self.requests: list[Request] = []
        self._next_logits = DecodingStep(model)
        self._cache = KVCache(model, max_rows, model.config.seq_len)
        self._cache.lengths = []

    def add(self, ids: list[int], sampling: Sampling) -> Request:
        """Read a prompt of at least one id, of a longer one than the context its end; `step` goes on from there."""
        raise_if("Engine", [None if ids else "ids is empty: start from at least one id, such as the tokenizer's bos",
                           None if len(self.requests) < self.max_rows else
                           f"max_rows={self.max_rows} requests are there: remove one first"])
        generator = torch.Generator(self.model.device).manual_seed(sampling.seed)
        request = Request(list(ids), sampling, len(ids), generator)
        self._read(request, len(self.requests), self.model.config.seq_len)
        self.requests.append(request)
        return request

    def remove(self, request: Request) -> None:
        """Let a request leave, finished or not."""
        row = self.requests.index(request)
        self._cache.remove(row)
        self.requests[row] = self.requests[-1]
        self.requests.pop()

    @torch.no_grad()
    def step(self) -> list[tuple[Request, int]]:
        """Generate the next token of each request, and append it to its ids."""
        context = self.model.config.seq_len
        for row, request in enumerate(self.requests):
            if self._cache.lengths[row] == context:
                self._read(request, row, max(1, context // 2))
        last_B = torch.tensor([request.ids[-1] for request in self.requests], device=self.model.device)
        logits_BV = self._next_logits(last_B, self._cache)[:, :self.vocab_size]
        drawn = torch.stack([sample(logits_V, request) for logits_V, request in zip(logits_BV, self.requests,
                                                                                   strict=True)]).tolist()
        for request, token in zip(self.requests, drawn, strict=True):
            request.ids.append(token)
        return list(zip(self.requests, drawn, strict=True))

    @torch.no_grad()
    def _read(self, request: Request, row: int, most: int) -> None:
        """Fill `row` of the cache with all but the last of the newest `most` ids; `step` reads that one."""
        ids = request.ids[-most:-1]
        cache = KVCache(self.model, 1, len(ids))
        if ids:
            self.model.hidden(torch.tensor([ids], device=self.model.device), cache)
        self._cache.put(row, cache)


def sample(logits_V: Tensor, request: Request) -> Tensor:
    """Next id of a request, a tensor without dimensions, so that a GPU isn't waited for."""
    how = request.sampling
    if how.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(request.ids)), device=logits_V.device)
        some = logits_V[seen]
        logits_V = logits_V.index_copy(0, seen, torch.where(some > 0, some / how.repetition_penalty,
                                                            some * how.repetition_penalty))
    if how.temperature < 1e-5:    # the quotient of a smaller one may leave the range of float32
        return logits_V.argmax()
    id_K, probability_K = candidates(logits_V, how)
    return id_K[torch.multinomial(probability_K, 1, generator=request.generator)[0]]


def candidates(logits_V: Tensor, how: Sampling) -> tuple[Tensor, Tensor]:
    """Ids that the filters keep, the likeliest first, and their probabilities; 0 for those that they drop.

    >>> ids, probabilities = candidates(torch.tensor([0.0, 2.0, 1.0]), Sampling(temperature=1.0, top_p=0.6))
    >>> ids.tolist(), probabilities.tolist()
    ([1, 2, 0], [1.0, 0.0, 0.0])
    """
    largest = (logits_V / how.temperature).topk(min(how.top_k or len(logits_V), len(logits_V)))
    p_K = largest.values.softmax(0)
    kept_K = (p_K.cumsum(0) - p_K < how.top_p) & (p_K >= how.min_p * p_K[0])
    kept_K[0] = True
    p_K = p_K * kept_K
    return largest.indices, p_K / p_K.sum()


def generate(model: GPT, tokenizer: Tokenizer, prompt: str = "", **sampling: Any) -> Iterator[str]:
    """Sample a continuation of `prompt`, streamed as text; the keywords are the fields of `Sampling`.

    A BOS token precedes the prompt.  The text ends after `max_tokens`, before a stop string, or with a special token,
    so with the document or the answer.  Ids of the model that the tokenizer lacks are never sampled.  Raises UserError
    if the model lacks ids of the tokenizer.
    """
    return (piece for _, piece in generate_batch(model, tokenizer, [prompt], [Sampling(**sampling)]))


def generate_batch(model: GPT, tokenizer: Tokenizer, prompts: Sequence[str | list[int]], sampling: Sequence[Sampling],
                   max_rows: int = 16) -> Iterator[tuple[int, str]]:
    """Sample a continuation of each prompt, up to `max_rows` at once: the index of a prompt, and a piece of its text.

    A prompt is a text, which BOS precedes, or the ids of one with its special tokens, such as `render_prompt` gives.
    Each text is the one that it would be alone, up to rounding: its seed is its own, and so are its filters.
    """
    check_tokenizer(model, tokenizer)
    waiting = list(enumerate(zip(prompts, sampling, strict=True)))
    max_rows = min(max_rows, len(waiting))    # a cache has memory for all its rows
    engine = Engine(model, max_rows, tokenizer.vocab_size)
    texts: dict[Request, tuple[int, TextStream]] = {}
    while waiting or engine.requests:
        while waiting and len(engine.requests) < max_rows:
            index, (prompt, how) = waiting.pop(0)
            if how.max_tokens:
                ids = [tokenizer.bos, *tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
                request = engine.add(ids, how)
                texts[request] = index, TextStream(tokenizer, how.stop)
        for request, token in engine.step() if engine.requests else ():
            index, text = texts[request]
            if piece := text.add(token, last=request.finished):
                yield index, piece
            if text.ended or request.finished:
                engine.remove(request)


class TextStream:
    """Streamed text of a growing sequence, in whole characters; what may begin a stop string is held back.

    It ends with a special token: BOS begins the next document, `<|assistant_end|>` ends an answer.
    """

    ended: bool = False
    """Whether a special token or a stop string has ended it."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop, self.held = tokenizer, stop, ""
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int, last: bool) -> str:
        """The text that `token` adds; at the end, all that is left."""
        self.ended = token >= self.tokenizer.bos    # the special tokens are the last ids
        data = b"" if self.ended else self.tokenizer.decode_bytes([token])
        text = self.held + self.decoder.decode(data, final=self.ended or last)
        found = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        if found:
            self.ended = True
            return text[:min(found)]
        begun = () if self.ended or last else (size for stop in self.stop for size in
                                               range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:size]))
        end = len(text) - max(begun, default=0)
        self.held = text[end:]
        return text[:end]


def check_tokenizer(model: GPT, tokenizer: Tokenizer) -> None:
    """Raise UserError if `tokenizer` has ids that `model` lacks, so it is another model's."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids and the model {model.config.vocab_size}: use "
                        "the tokenizer of the model's own run")


def generate_ids(model: GPT, ids: list[int], vocab_size: int | None = None, **sampling: Any) -> Iterator[int]:
    """Sample ids below `vocab_size` (None: all) after `ids`; the keywords are the fields of `Sampling`."""
    engine = Engine(model, 1, vocab_size)
    request = engine.add(ids, Sampling(**sampling))
    while not request.finished:
        yield engine.step()[0][1]
