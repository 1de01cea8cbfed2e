"""Sampling parameters of generated text: temperature, top-k, top-p, min-p, repetition penalty, stop strings, seed."""

from __future__ import annotations

from dataclasses import dataclass

from tinylib.checks import check_float, check_int, raise_if


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of one sequence; the filters apply in the order of their fields, as in `transformers`."""

    max_tokens: int = 128
    """Most tokens to generate."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that occurred, in the prompt too, and multiplies negative ones; 1: none."""
    temperature: float = 0.8
    """Divides the logits; 0 is greedy decoding: the likeliest token each time."""
    top_k: int | None = 50
    """Keep so many of the likeliest tokens; None keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities add up to this."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the likeliest one's probability."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are not part of it."""
    seed: int = 0

    def __post_init__(self) -> None:
        raise_if("Sampling", [
            check_int("max_tokens", self.max_tokens, least=0), check_int("seed", self.seed, least=0),
            check_float("repetition_penalty", self.repetition_penalty, 0, above=True),
            check_float("temperature", self.temperature, 0),
            None if self.top_k is None else check_int("top_k", self.top_k),
            check_float("top_p", self.top_p, 0, 1, above=True), check_float("min_p", self.min_p, 0, 1),
            f"stop={self.stop!r} holds an empty string: leave it out" if "" in self.stop else None])
