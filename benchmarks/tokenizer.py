"""The tokenizer against the `tokenizers` library: encoding, training, and memory of training as the text grows.

    python benchmarks/tokenizer.py [encode train growth] [--text pydocs] [--characters 47e6] [--vocab-size 24576]

`--text` is a corpus's name or a path.  Contenders take turns and the medians of `--rounds` are given.  All ids of all
encoders are compared before time is taken.  Each training is a process of its own which reads lines of a plain file,
so that memory is the trainer's and not a reader's of parquet; its peak is VmHWM, its growth what came after imports.
`growth` reads 10, 100 and 365 million characters, or what there is, and says what that means for 4 billion.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tinylib import corpus, hardware
from tinylib.tokenizer import PATTERN, SPECIAL_TOKENS, Tokenizer, words

GROWTH = (10e6, 30e6, 100e6, 200e6, 365e6)


def write_lines(name: str, file: Path, characters: float) -> None:
    """Documents of the training split until so many characters have passed, as lines of JSON."""
    left = int(characters)
    with file.open("w", encoding="utf-8") as lines:
        for text in corpus.load(name).texts("train"):
            lines.write(json.dumps(text[:left]) + "\n")
            left -= len(text)
            if left <= 0:
                return


def texts(file: str, characters: float) -> Iterator[str]:
    """The texts of a file that `write_lines` wrote, until so many characters have passed."""
    left = int(characters)
    with Path(file).open(encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return


def memory(field: str) -> int:
    """VmHWM (peak) or VmRSS (now) of this process, in bytes; Linux only."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


def in_a_process(*arguments: object, **environment: str) -> dict[str, float]:
    """Output of this script, called with these arguments."""
    done = subprocess.run([sys.executable, __file__, "--one", json.dumps(arguments)], check=True, text=True,
                          stdout=subprocess.PIPE, env=os.environ | environment)
    return json.loads(done.stdout.splitlines()[-1])


# Training


def train(file: str, library: str, characters: float, vocab_size: int) -> dict[str, float]:
    """Seconds, peak and growth in bytes of one training in this very process, reading included."""
    import rustbpe  # noqa: F401 - so that both are imported before memory is looked at
    import tokenizers

    source, before = texts(file, characters), memory("VmRSS")
    began = time.perf_counter()
    if library == "tinylib":
        reached = Tokenizer.train(source, vocab_size).vocab_size
    else:
        theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
        byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
        theirs.train_from_iterator(source, tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
        reached = theirs.get_vocab_size()
    assert reached == vocab_size
    return {"seconds": time.perf_counter() - began, "peak": memory("VmHWM"), "growth": memory("VmHWM") - before}


def compare_training(options: argparse.Namespace) -> dict[str, object]:
    """Both libraries on the same text, in turn."""
    found: dict[str, list[dict[str, float]]] = {"tinylib": [], "tokenizers": []}
    for _, library in itertools.product(range(options.rounds), found):
        found[library].append(in_a_process("train", options.lines, library, options.characters, options.vocab_size))
    middle = {library: {fact: statistics.median(run[fact] for run in runs) for fact in runs[0]}
              for library, runs in found.items()}
    for library, run in middle.items():
        print(f"train {options.vocab_size:,} on {options.characters / 1e6:.0f} M characters, {library:<11}"
              f"{run['seconds']:7.1f} s, peak {run['peak'] / 1e6:7.0f} MB, growth {run['growth'] / 1e6:7.0f} MB")
    ratios = {fact: middle["tinylib"][fact] / middle["tokenizers"][fact] for fact in ("seconds", "peak", "growth")}
    print("tinylib / tokenizers: " + ", ".join(f"{fact} {ratio:.2f}" for fact, ratio in ratios.items()))
    return {"runs": found, "ratios": ratios}


# Encoding


def encode(file: str, characters: float, vocab_size: int, threads: int, rounds: int) -> dict[str, float]:
    """MB of UTF-8 a second of each encoder with so many threads, in this very process; the ids are the same."""
    import tiktoken
    import tokenizers

    documents = list(texts(file, characters))
    ours = Tokenizer.train(documents, vocab_size, fewer=True)
    plain = tiktoken.Encoding("plain", pat_str=PATTERN, special_tokens={},
                              mergeable_ranks={word: rank for rank, word in enumerate(ours.tokens)})
    with tempfile.TemporaryDirectory() as folder:
        ours.save_huggingface(Path(folder) / "tokenizer.json")
        theirs = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    theirs.encode_special_tokens = True
    documents = documents[:len(documents) // 4]
    encoders: dict[str, Callable[[], list[list[int]]]] = {
        "tinylib": lambda: ours.encode_batch(documents, threads),
        "tiktoken": lambda: in_threads(plain.encode_ordinary, documents, threads),
        "tokenizers": lambda: [found.ids for found in theirs.encode_batch(documents)],
        "tokenizers, without offsets": lambda: [found.ids for found in theirs.encode_batch_fast(documents)]}
    expected = encoders["tinylib"]()
    assert all(encoder() == expected for encoder in encoders.values())
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _, (name, encoder) in itertools.product(range(rounds), encoders.items()):
        began = time.perf_counter()
        encoder()
        seconds[name].append(time.perf_counter() - began)
    size = sum(len(text.encode()) for text in documents) / 1e6
    return {name: size / statistics.median(taken) for name, taken in seconds.items()}


def in_threads(function: Callable[[str], list[int]], documents: list[str], threads: int) -> list[list[int]]:
    """`function` of every document; in one thread without a pool, which only costs."""
    if threads == 1:
        return list(map(function, documents))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, documents))


def compare_encoding(options: argparse.Namespace) -> dict[str, object]:
    """All encoders with one thread, and with one a core."""
    found = {}
    for threads in sorted({1, hardware.cores()}):
        rates = in_a_process("encode", options.lines, min(options.characters, 20e6), options.vocab_size, threads,
                             options.rounds, RAYON_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="true")
        found[threads] = rates
        print(f"encode, {threads} thread(s): " + ", ".join(f"{name} {rate:.1f} MB/s" for name, rate in rates.items())
              + f"; tinylib / tokenizers {rates['tinylib'] / rates['tokenizers']:.1f}, / tiktoken "
                f"{rates['tinylib'] / rates['tiktoken']:.2f}")
    return found


# Growth


def distinct(file: str, sizes: list[float]) -> list[tuple[int, int]]:
    """Characters read and distinct words met, at each size that the text reaches, and at its end."""
    met, read, points = set[str](), 0, []
    for text in texts(file, sizes[-1]):
        met.update(words(text))
        read += len(text)
        if read >= sizes[len(points)]:
            points.append((read, len(met)))
    return points if points and points[-1][0] == read else [*points, (read, len(met))]


def growth(options: argparse.Namespace) -> dict[str, object]:
    """Peak memory and time against the text read, and both at 4 billion characters."""
    sizes = list(np.geomspace(3e6, max(GROWTH), 25))
    points_P2 = np.array(in_a_process("distinct", options.lines, sizes), float)
    read, met = np.log(points_P2).T
    rows = []
    for size in [size for size in GROWTH if size <= 1.01 * points_P2[-1, 0]]:
        run = in_a_process("train", options.lines, "tinylib", size, options.vocab_size)
        rows.append((size, float(np.exp(np.interp(np.log(size), read, met))), run["seconds"], run["peak"]))
        print("growth: {:,.0f} M characters, {:,.0f} distinct words, {:.1f} s, peak {:,.0f} MB".format(
            size / 1e6, rows[-1][1], run["seconds"], run["peak"] / 1e6))
    rows_R4 = np.array(rows)
    last = read >= read[-1] - np.log(10)
    slope, start = np.polyfit(read[last], met[last], 1)
    ahead = np.log(4e9) - read[-1]
    early = read <= read[-1] - ahead
    miss = met[-1] - np.polyval(np.polyfit(read[early], met[early], 1), read[-1])
    middle = np.exp(start + slope * np.log(4e9))
    low, high = middle * np.exp(-abs(miss)), middle * np.exp(abs(miss))
    a_word, base = np.polyfit(rows_R4[:, 1], rows_R4[:, 3], 1)
    a_character = (rows_R4[-1, 2] - rows_R4[0, 2]) / (rows_R4[-1, 0] - rows_R4[0, 0])
    print(f"Heaps' law over the last decade: distinct words grow like characters^{slope:.3f}, within "
          f"{np.abs(start + slope * read - met)[last].max():.1%}; peak memory is {base / 1e6:,.0f} MB and "
          f"{a_word:,.0f} bytes a distinct word")
    print(f"the same line through the first 1/{np.exp(ahead):.0f} of the text misses the words of all of it by "
          f"{np.expm1(abs(miss)):.0%}; so at 4e9 characters, as far ahead again, {low / 1e6:.1f} to {high / 1e6:.1f} M "
          f"distinct words, {(base + a_word * low) / 1e9:.1f} to {(base + a_word * high) / 1e9:.1f} GB, about "
          f"{(rows_R4[-1, 2] + a_character * (4e9 - rows_R4[-1, 0])) / 60:.0f} min")
    return {"rows": rows, "heaps": slope, "bytes_a_word": a_word, "words_at_4e9": [low, high],
            "bytes_at_4e9": [base + a_word * low, base + a_word * high]}


PARTS = {"encode": compare_encoding, "train": compare_training, "growth": growth}
ALONE = {"train": train, "encode": encode, "distinct": distinct}


def main() -> None:
    """The parts asked for; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--text", default="pydocs")
    parser.add_argument("--characters", type=float, default=47e6)
    parser.add_argument("--vocab-size", type=int, default=24_576)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        function, *arguments = json.loads(options.one)
        print(json.dumps(ALONE[function](*arguments)))
        return
    parts = options.parts or list(PARTS)
    with tempfile.TemporaryDirectory() as folder:
        options.lines = str(Path(folder) / "texts.jsonl")
        write_lines(options.text, Path(options.lines), max(GROWTH) if "growth" in parts else options.characters)
        print(json.dumps({part: PARTS[part](options) for part in parts}))


if __name__ == "__main__":
    main()
