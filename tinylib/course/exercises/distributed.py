"""Checkers of notebook 04: distributed training."""

from __future__ import annotations

from collections.abc import Callable

from tinylib.config import batch_problem
from tinylib.course.exercises import checker, given


@checker("04.1")
def global_mean(answer: Callable[[list[float], list[int]], float]) -> None:
    """The mean loss over the targets of all ranks."""
    for means, counts in (([2.0, 4.0], [1, 3]), ([3.0, 3.0, 3.0], [5, 1, 9]), ([1.0, 8.0], [7, 0]), ([2.5], [4])):
        found = given(answer(list(means), list(counts)))
        right = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
        assert abs(found - right) < 1e-9, (f"means {means} over {counts} targets give {right:g}, not {found:g}: add up "
                                           "losses and targets over the ranks, divide once")


@checker("04.2")
def accumulation(answer: Callable[[int, int, int, int], int | None]) -> None:
    """Accumulation steps of a global batch, None where it does not divide."""
    given(answer(524_288, 8, 2048, 8))
    for total, batch, seq_len, world_size in ((524_288, 8, 2048, 8), (524_288, 32, 2048, 16), (4_096, 8, 256, 2),
                                              (4_096, 8, 256, 3), (2_048, 16, 256, 1)):
        problem = batch_problem(total, batch, seq_len, world_size)
        right = None if problem else total // (batch * seq_len * world_size)
        found = answer(total, batch, seq_len, world_size)
        assert found == right, (f"{total} tokens by {batch} sequences of {seq_len} on {world_size} processes: {right} "
                                f"steps, not {found}. A micro-batch of all processes is the product of the last three; "
                                "return None for a total that is no multiple of it")


@checker("04.3")
def rows_of(answer: Callable[[int, int, int, int], range]) -> None:
    """The rows of the global batch that a rank takes in an accumulation step."""
    for world_size, steps, size in ((2, 1, 8), (4, 2, 4), (1, 3, 2), (3, 2, 5)):
        parts = [list(given(answer(rank, world_size, step, size)))
                 for step in range(steps) for rank in range(world_size)]
        assert all(len(part) == size for part in parts), f"each rank takes {size} rows in each accumulation step"
        rows = sorted(row for part in parts for row in part)
        assert rows == list(range(world_size * steps * size)), (
            f"{world_size} ranks and {steps} accumulation steps of {size} rows must take each of the rows 0 to "
            f"{world_size * steps * size - 1} once, and took {rows}")
