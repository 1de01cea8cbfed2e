"""Continuous batching of HTTP requests: rows of one engine, pieces of text to each client."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastapi import Request

from tinylib.generate import Engine, TextStream
from tinylib.generate import Request as Row
from tinylib.model import GPT
from tinylib.sampling import Sampling
from tinylib.serve.requests import Failure
from tinylib.tokenizer import Tokenizer


class Job:
    """One text that is generated: its row in the batch, and the pieces that wait for the client.

    Pieces are at most `max_tokens`, so a slow client costs little memory and delays nobody.
    """

    def __init__(self, index: int, ids: list[int], sampling: Sampling, text: TextStream) -> None:
        self.index, self.ids, self.sampling, self.text = index, ids, sampling, text
        self.tokens, self.cancelled = 0, False


class Batcher:
    """Continuous batching of HTTP requests: one thread steps the engine, the event loop hands out the pieces."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, max_rows: int, max_waiting: int) -> None:
        self._new_engine = lambda: Engine(model, max_rows, tokenizer.vocab_size)
        self._engine: Engine | None = self._new_engine()
        self._rows: dict[Row, Job] = {}
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._waiting: deque[Job] = deque()
        self._queues: dict[Job, asyncio.Queue] = {}
        self._work = asyncio.Event()

    async def run(self) -> None:
        """Step while there is work, for as long as the server lives; a failure ends the requests that it met."""
        with ThreadPoolExecutor(1, "tinylib-engine") as thread:
            while True:
                await self._work.wait()
                self._work.clear()
                free = self._max_rows - len(self._rows)
                joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
                try:
                    pieces = await asyncio.get_running_loop().run_in_executor(thread, self._advance, joining)
                except Exception as error:
                    failed = [job for job in self._queues if job not in self._waiting]
                    self._engine, self._rows = None, {}    # its memory is free before the next one is made
                    pieces = [(job, f"the model failed: {type(error).__name__}", "model_failed") for job in failed]
                for job, piece, reason in pieces:
                    if job in self._queues:
                        self._queues[job].put_nowait((job, piece, reason))
                if self._rows or self._waiting:
                    self._work.set()

    def _advance(self, joining: Sequence[Job]) -> list[tuple[Job, str, str | None]]:
        """Let cancelled rows leave and `joining` ones in, then generate a token of each: job, piece, finish reason."""
        self._engine = self._engine or self._new_engine()
        for row in [row for row, job in self._rows.items() if job.cancelled]:
            self._leave(row)
        for job in joining:
            if not job.cancelled:
                self._rows[self._engine.add(job.ids, job.sampling)] = job
        pieces = []
        for row, token in self._engine.step() if self._rows else ():
            job = self._rows[row]
            piece = job.text.add(token, last=row.finished)
            job.tokens += 1
            reason = "stop" if job.text.ended else "length" if row.finished else None
            pieces.append((job, piece, reason))
            if reason:
                self._leave(row)
        return pieces

    def _leave(self, row: Row) -> None:
        self._engine.remove(row)
        del self._rows[row]

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue `jobs`, which `drop` must end; raise Failure 503 if there are more than may run and wait."""
        if len(self._queues) + len(jobs) > self._max_rows + self._max_waiting:
            raise Failure(503, f"{len(self._queues)} texts are generated or wait already: try again in a moment",
                          code="overloaded")
        self._queues |= dict.fromkeys(jobs, asyncio.Queue())
        self._waiting.extend(jobs)
        self._work.set()

    def drop(self, jobs: Sequence[Job]) -> None:
        """End `jobs`, done or not."""
        for job in jobs:
            job.cancelled = True
            self._queues.pop(job, None)
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)

    def close(self) -> None:
        """End all jobs with an error, because the server ends."""
        for job, queue in self._queues.items():
            queue.put_nowait((job, "the server ends", "shutting_down"))

    async def stream(self, jobs: Sequence[Job], request: Request) -> AsyncIterator[tuple[Job, str, str | None]]:
        """Pieces of submitted `jobs` as they come, until all are done or the client goes away."""
        queue, left = self._queues[jobs[0]], len(jobs)
        gone = asyncio.create_task(_disconnected(request, queue))
        try:
            while left:
                job, piece, reason = await queue.get()
                if job is None:
                    return
                if reason not in (None, "stop", "length"):
                    raise Failure(503, piece, code=reason)
                left -= reason is not None
                yield job, piece, reason
        finally:
            gone.cancel()


async def _disconnected(request: Request, queue: asyncio.Queue) -> None:
    """Tell the queue when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    queue.put_nowait((None, "", None))
