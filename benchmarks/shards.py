"""Text to shards against bare tiktoken, its memory at two sizes, and the loader against nanochat's.

    python benchmarks/shards.py [--text FOLDER --vocab-size 24576 --shares 1 10] [--nanochat CHECKOUT] [--rounds 5]

FOLDER holds parquet files with a column `text`; without it the built-in corpus serves, which is small.  A checkout of
nanochat is only imported from, with this tokenizer in the place of its own; without one its rows are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import tiktoken

from tinylib import corpus, hardware
from tinylib.shards import Batch, Loader, Shards, build
from tinylib.tokenizer import PATTERN, Tokenizer, batch_texts

SHAPES = ((8, 2048), (16, 256))


def up_to(texts: Iterable[str], characters: float) -> Iterator[str]:
    """Texts until `characters` have passed."""
    seen = 0
    for text in texts:
        if seen >= characters:
            return
        seen += len(text)
        yield text


def speed(source: corpus.Corpus, tokenizer: Tokenizer, place: Path, characters: float, rounds: int) -> dict[str, float]:
    """Characters a second of encoding texts in memory, and from the corpus to shards on disk, with all cores each."""
    texts, cores = list(up_to(source.texts("train"), characters)), hardware.cores()
    encoding = tiktoken.Encoding("bare", pat_str=PATTERN, special_tokens=tokenizer.special_ids,
                                 mergeable_ranks={word: rank for rank, word in enumerate(tokenizer.tokens)})

    def bare() -> None:
        for batch in batch_texts(texts):
            encoding.encode_ordinary_batch(batch, num_threads=cores)

    def encode() -> None:
        for batch in batch_texts(texts):
            tokenizer.encode_batch(batch)

    def to_shards() -> None:
        build({"train": up_to(source.texts("train"), characters)}, tokenizer, place / "speed")

    contenders = {"tiktoken, in memory": bare, "tinylib, in memory": encode, "text to shards": to_shards}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    rates = {name: sum(map(len, texts)) / statistics.median(times) / 1e6 for name, times in seconds.items()}
    print(f"{sum(map(len, texts)) / 1e6:,.0f} M characters, {cores} cores: M characters/s, times tiktoken")
    for name, times in seconds.items():
        ratios = sorted(first / own for first, own in zip(seconds["tiktoken, in memory"], times, strict=True))
        print(f"  {name:<22}{rates[name]:>8.1f}{statistics.median(ratios):>8.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return rates


def memory(text: str, tokenizer: Path, place: Path, characters: float) -> dict[str, float]:
    """Peak resident bytes of a building process with all its children (what they share is counted for each)."""
    task = json.dumps([text, str(tokenizer), str(place / "memory"), characters])
    process = psutil.Popen([sys.executable, __file__, "--build", task])
    peak = most = 0
    while process.poll() is None:
        try:
            family = [process, *process.children()]
            peak, most = max(peak, sum(one.memory_info().rss for one in family)), max(most, len(family))
        except psutil.Error:
            continue
        time.sleep(0.02)
    assert process.returncode == 0
    print(f"{characters / 1e6:,.0f} M characters: peak of {most} processes {peak / 1e6:,.0f} MB")
    return {"characters": characters, "processes": most, "peak_bytes": peak}


def loading(shards: Shards, seconds: float) -> dict[str, float]:
    """Tokens a second that a loader alone delivers, from files that were read before."""
    rates = {}
    for rows, seq_len in SHAPES:
        with Loader(shards, (Batch(step, rows, seq_len) for step in itertools.count())) as loaded:
            rates[f"{rows} × {seq_len}"] = rows * seq_len * per_second(loaded, seconds)
    for shape, rate in rates.items():
        print(f"loader, {shape}: {rate / 1e6:,.1f} M tokens/s")
    whole = [int((y >= 0).sum()) for _, y in shards.in_order(2048)]
    print(f"tokens that are never a target at T 2,048: {1 - sum(whole) / shards.tokens:.1e}")
    return rates


def per_second(batches: Iterator[Any], seconds: float, rounds: int = 5) -> float:
    """Median rate of `batches`, after a warm-up."""
    rates = []
    for _ in range(rounds + 1):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            next(batches)
            count += 1
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def nanochat(checkout: Path, text: Path, tokenizer: Tokenizer, seconds: float) -> dict[str, float]:
    """Tokens a second of nanochat's loader on the same text, and the share of the encoded tokens that it drops."""
    sys.path.insert(0, str(checkout))
    from nanochat import dataloader
    from nanochat.tokenizer import RustBPETokenizer

    theirs, encoded = RustBPETokenizer(tokenizer._encoding, "<|bos|>"), [0]
    encode = theirs.encode

    def counted(texts: list[str], **options: Any) -> list[list[int]]:
        found = encode(texts, **options)
        encoded[0] += sum(map(len, found))
        return found

    theirs.encode = counted
    dataloader.list_parquet_files = lambda **_: [*map(str, sorted(text.glob("train*.parquet"))), "val"]
    results = {}
    for batch_size, seq_len in SHAPES:
        encoded[0] = taken = 0
        batches = dataloader.tokenizing_distributed_data_loader_with_state_bos_bestfit(
            theirs, batch_size, seq_len, "train", tokenizer_threads=hardware.cores(), device="cpu")
        began, rates = time.perf_counter(), []
        next(batches)    # fills its buffer of a thousand documents
        while len(rates) < 5:
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < 2 * seconds:
                next(batches)
                count += 1
            rates.append(batch_size * seq_len * count / (time.perf_counter() - began))
            taken += count
        waiting = sum(map(len, batches.gi_frame.f_locals["doc_buffer"]))
        dropped = 1 - (taken + 1) * batch_size * (seq_len + 1) / (encoded[0] - waiting)
        results[f"{batch_size} × {seq_len}"] = {"tokens_per_s": statistics.median(rates), "dropped": dropped}
        print(f"nanochat, {batch_size} × {seq_len}: {statistics.median(rates) / 1e6:,.2f} M tokens/s, "
              f"drops {dropped:.1%} of the tokens")
    return results


def main() -> None:
    """Everything in turn; the last line is all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="pydocs")
    parser.add_argument("--nanochat", type=Path)
    parser.add_argument("--characters", type=float, default=36e6, help="of the text, for the speeds")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 1], help="of --characters, for the memory")
    parser.add_argument("--vocab-size", type=int, default=6_144)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--build", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        text, tokenizer, folder, characters = json.loads(options.build)
        build({"train": up_to(corpus.load(text).texts("train"), characters)}, Tokenizer.load(tokenizer), folder)
        return
    source, rates = corpus.load(options.text), {}
    tokenizer = Tokenizer.train(source.texts("train"), options.vocab_size, max_chars=int(options.characters))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tokenizer.save(place / "tokenizer")
        rates["speed"] = speed(source, tokenizer, place, options.characters, options.rounds)
        rates["memory"] = [memory(options.text, place / "tokenizer", place, share * options.characters)
                           for share in options.shares]
        rates["loader"] = loading(Shards(place / "memory"), options.seconds)
        if options.nanochat:
            rates["nanochat"] = nanochat(options.nanochat, Path(options.text), tokenizer, options.seconds)
        else:
            print("nanochat: skipped, no --nanochat CHECKOUT")
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
