"""The search over a grid of a million shapes and more, against plain loops in Python over the same formulas.

    python benchmarks/search.py [--steps 128 16] [--rounds 7]

`--steps`: distances between the vocabulary sizes from 256 to 131,072; 128 makes a million shapes, 16 eight million.
The loops must find the same number of candidates and the same Pareto front; the other columns only the search makes.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence

from tinylib import sizing

TOTAL, TOLERANCE, HEAD_DIM, CONTEXT, DEPTHS = 38e6, 0.02, 64, 2048, range(3, 65)
WIDTHS = range(HEAD_DIM, math.isqrt(int(TOTAL * (1 + TOLERANCE) / 12 / DEPTHS[0])) + 1, HEAD_DIM)


def loops(vocab_sizes: Sequence[int]) -> tuple[int, int]:
    """Counts of candidates and of those on their Pareto front: one shape after another."""
    figures = []
    for depth in DEPTHS:
        for dim in WIDTHS:
            for vocab_size in vocab_sizes:
                blocks, table = 12 * depth * dim * dim, vocab_size * dim
                total = blocks + 2 * table
                if abs(total - TOTAL) <= TOLERANCE * TOTAL:
                    cost = 6 * (blocks + table) + 12 * depth * dim * CONTEXT
                    figures.append((round(abs(100 * blocks / total - 100 / 3), 9), cost,
                                    4 * total + 8 * depth * dim * CONTEXT, abs(total - TOTAL)))
    front: list[tuple[float, ...]] = []
    for row in sorted(figures):
        if not any(all(a <= b for a, b in zip(other, row, strict=True)) and other != row for other in front):
            front.append(row)
    return len(figures), len(front)


def seconds(function: Callable[[], object], rounds: int) -> float:
    """Median wall time of a call."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[128, 16])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows = []
    for step in options.steps:
        vocab_sizes = range(256, 131_073, step)
        found = sizing.search(TOTAL, HEAD_DIM, vocab_sizes, DEPTHS[0], DEPTHS[-1], tolerance=TOLERANCE, context=CONTEXT)
        row = {"shapes": len(DEPTHS) * len(WIDTHS) * len(vocab_sizes), "candidates": len(found),
               "front": int(found.pareto.sum()), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
               "search_s": seconds(lambda vocab=vocab_sizes: sizing.search(vocab_sizes=vocab), options.rounds)}
        del found
        assert loops(vocab_sizes) == (row["candidates"], row["front"])
        row["loops_s"] = seconds(lambda vocab=vocab_sizes: loops(vocab), 1)
        print("{shapes:,} shapes: {candidates:,} candidates, {front:,} on the front, {search_s:.3f} s; plain loops "
              "{loops_s:.2f} s; peak memory of the process {peak_mb} MB".format(**row))
        rows.append(row)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
