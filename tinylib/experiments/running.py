"""Runs of an experiment: several side by side, one thread each, resumable after anything, one record at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from tinylib import corpus, hardware, profiles, sizing
from tinylib.checks import UserError, join_or
from tinylib.config import TieMethod, TrainConfig, from_dict
from tinylib.experiments.description import Description, Trial, ancestors, describe, once
from tinylib.experiments.records import Record, append, by_machine, of_trial, records
from tinylib.launch import Run, launch
from tinylib.rundir import ENDED, Header, StatusLine, Step, downsampled
from tinylib.shards import Shards, build
from tinylib.tokenizer import Tokenizer

POINTS = 100
"""Points of a record's curve."""


class Failed(RuntimeError):
    """Some runs of an experiment failed; the message has the cause of each."""


class Source:
    """The text of an experiment as shards, one folder a vocabulary, under the home's data."""

    def __init__(self, description: Description, path: str | None) -> None:
        text = description.text
        self._text, self._path = text, path or os.environ.get("TINYLIB_CORPUS")
        self._largest = max(trial.config.model.vocab_size for trial in description.trials())
        sha256 = text.sha256 or corpus.load(str(text.name)).manifest["sha256"]
        self.name = f"{sha256[:16]}-{text.characters}"
        """Hash of the corpus, and how many of its training characters are used."""
        self._folder = profiles.home() / "data" / "shards" / self.name

    def shards(self, vocab_size: int) -> Path:
        """The folder of shards with this vocabulary, built if it isn't there."""
        folder = self._folder / f"shards-{vocab_size}"
        if not (folder / "index.json").is_file():
            texts = self._open()
            build({"train": _first(texts, self._text.characters), "val": texts.texts("val")},
                  self._tokenizer(texts).truncate(vocab_size), folder, progress=sys.stderr.isatty())
        found = Shards(folder).vocab_size
        if found != vocab_size:
            raise UserError(f"{folder} holds shards with a vocabulary of {found}, not {vocab_size}: delete it, and run "
                            "again, which builds it")
        return folder

    def _tokenizer(self, texts: corpus.Corpus) -> Tokenizer:
        """The tokenizer with the largest vocabulary of the experiment; smaller ones are its beginnings."""
        folder = self._folder / f"tokenizer-{self._largest}"
        if not folder.is_dir():
            Tokenizer.train(_first(texts, self._text.characters), self._largest).save(folder)
        return Tokenizer.load(folder)

    def _open(self) -> corpus.Corpus:
        """The corpus, once its hash is known to be that of the description."""
        text = self._text
        if text.name:
            return corpus.load(text.name)
        if not self._path:
            raise UserError("this experiment needs a text that tinylib does not bring: give its place by --corpus PATH "
                            f"or TINYLIB_CORPUS; sha256 {text.sha256}; {text.source}")
        found = corpus.load(self._path)
        sha256 = found.manifest["sha256"]
        if sha256 != text.sha256:
            raise UserError(f"the text at {self._path} has sha256 {sha256}, and the experiment is about {text.sha256}: "
                            "use that text, or copy the description and write the hash of yours into it")
        return found


def _first(texts: corpus.Corpus, characters: int) -> Iterator[str]:
    """The first training documents, as many as begin within `characters`."""
    read = 0
    for text in texts.texts("train"):
        if read >= characters:
            return
        read += len(text)
        yield text


def run(name: str | Path, *, minutes: float | None = None, workers: int | None = None,
        corpus: str | None = None) -> dict[str, int]:
    """Do the missing runs of an experiment, `workers` side by side (None: one a core), for at most `minutes`.

    Each run is a launched process with one thread, which saves ten times; at the end of the time, and on an interrupt,
    it saves and stops, and the next call resumes it.  A run that a killed call left behind goes on, and the next call
    follows it.  `corpus` is the place of a text that the description knows by its hash.  Returns the numbers of runs
    that are `done` and `missing`.

    Raises ConfigError or UserError for a wrong description or text, BlockingIOError while another process runs the
    experiment, and Failed at the end if runs failed; the next call tries them again.
    """
    description = describe(name)
    with _locked(description):
        queue = _Queue(description, Source(description, corpus))
        end_s = time.monotonic() + (60 * minutes if minutes is not None else float("inf"))
        try:
            while queue.work(workers or hardware.cores()) and time.monotonic() < end_s:
                time.sleep(0.2)
        finally:
            queue.stop()
    if queue.failures:
        raise Failed("\n\n".join(queue.failures))
    return {"done": len(description.trials()) - len(queue.missing), "missing": len(queue.missing)}


@contextlib.contextmanager
def _locked(description: Description) -> Iterator[None]:
    """File lock: one process at a time runs an experiment; the kernel releases it with the process."""
    from filelock import FileLock, Timeout

    folder(description).mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder(description) / ".lock").acquire(blocking=False)
    except Timeout:
        raise BlockingIOError(errno.EWOULDBLOCK, "another process runs this experiment: wait for it, or interrupt it",
                              str(description.path)) from None
    with lock:
        yield


def folder(description: Description) -> Path:
    """Folder of the experiment's runs while they are in progress."""
    return profiles.home() / "runs" / description.name


class _Queue:
    """The runs that have no record, those of them that are in progress, and what failed."""

    def __init__(self, description: Description, source: Source) -> None:
        self.failures: list[str] = []
        self.active: list[tuple[Trial, Run]] = []
        self._description, self._source = description, source
        self._line = StatusLine(sys.stderr)
        self._began_s, self._flops = time.monotonic(), 0.0    # FLOPs of this call
        found = [record for record in records(description.records_file) if record["text"] == source.name]
        self.missing = missing(description, found)
        # A parent whose record is written may be gone; it is run again for the sake of its checkpoint.
        self._waiting = once(one for trial in self.missing for one in (*ancestors(trial), trial))

    def work(self, workers: int) -> bool:
        """Begin runs where there is room and collect those that have ended; False when nothing is left."""
        ended = [(trial, run) for trial, run in self.active if run.state in ENDED and not run.alive()]
        self.active = [pair for pair in self.active if pair not in ended]
        while len(self.active) < workers and (trial := self._next()):
            self._waiting.remove(trial)
            self.active.append((trial, self._begin(trial)))
            self._flops -= _flops(*self.active[-1])
        for trial, run in ended:    # after the next have begun, so that no core waits
            self._collect(trial, run)
        self._line.show(self._progress, last=not self.active)
        return bool(self.active)

    def _next(self) -> Trial | None:
        """The first run in order whose parent, if any, has finished."""
        ready = (trial for trial in self._waiting if trial.parent is None or self._has_finished(trial.parent))
        return next(ready, None)

    def _run(self, trial: Trial) -> Run:
        return Run(folder(self._description) / trial.name)

    def _has_finished(self, trial: Trial) -> bool:
        run = self._run(trial)
        return run.exists() and run.state == "finished" and not run.alive()

    def _begin(self, trial: Trial) -> Run:
        """Start a run, or go on with what there is of it."""
        run = self._run(trial)
        if run.exists() and (run.state == "finished" or run.alive()):
            return run
        if not run.exists():
            shutil.rmtree(run.path, ignore_errors=True)    # a start that was killed before it wrote anything
        data = self._source.shards(trial.config.model.vocab_size)
        start = trial.parent and str(self._start(trial, trial.parent, data))
        config = replace(trial.config, data=str(data), run_dir=str(run.path), init_from=start)
        return launch(config, 1, threads=1, share=True, resume=run.exists())

    def _start(self, trial: Trial, parent: Trial, data: Path) -> Path:
        """The checkpoint of `parent` that `trial` starts from, tied or untied first where its arm says so."""
        from tinylib.tying import tie, untie

        found, converted = self._run(parent).checkpoint(trial.start_step), self._converted(trial)
        if trial.convert is None:
            return found
        shutil.rmtree(converted, ignore_errors=True)    # of a start that was killed
        if trial.convert == "untie":
            return untie(found, converted)
        return tie(found, converted, cast(TieMethod, trial.convert), Shards(data))    # not on the validation text

    def _converted(self, trial: Trial) -> Path:
        return folder(self._description) / f"{trial.name}-start"

    def _collect(self, trial: Trial, run: Run) -> None:
        """Append the record of a run that has finished, and remove what no other run needs."""
        if run.state != "finished":
            self.failures.append(f"{trial.label}: {run.failure() or run.state}")
            return
        if trial in self.missing:
            append(self._description.records_file, {
                "experiment": self._description.name, "size": trial.size, "arm": trial.arm, "seed": trial.seed,
                "budget": trial.flops, "config": trial.identity, "text": self._source.name, **outcome(run)})
            self.missing.remove(trial)
        self._flops += _flops(trial, run)
        for one in (*ancestors(trial), trial):
            if not any(one in ancestors(other) for other in self.missing):
                self._run(one).remove()
                shutil.rmtree(self._converted(one), ignore_errors=True)

    def stop(self) -> None:
        """Let the runs in progress save and end."""
        for _, run in self.active:
            run.stop()

    def _progress(self) -> str:
        """Progress: runs to do, steps of those in progress, and the time left at this speed."""
        steps = [(trial, run.last(Step)) for trial, run in self.active]
        parts = [f"{trial.label}: step {step.step if step else 0:,} of {trial.config.steps:,}" for trial, step in steps]
        share = sum(_flops(*pair) for pair in self.active)
        left, done = sum(trial.flops for trial in self.missing) - share, self._flops + share
        if left > 0 and done > 0:
            parts.append(f"{sizing.duration(left / done * (time.monotonic() - self._began_s))} left")
        return "  ".join([f"{len(self.missing)} runs to do", *parts])


def missing(description: Description, found: Iterable[Record]) -> list[Trial]:
    """Runs to make on this kind of machine: those without a record here, if no kind has all that they are paired with.

    Pairs of which another kind of machine has more come last; they are made here as a whole.
    """
    here, kinds = (hardware.processor(), metadata.version("torch")), by_machine(found)
    first, last = [], []
    for trials in description.paired():
        counts = {kind: sum(bool(of_trial(trial, kinds[kind])) for trial in trials) for kind in kinds}
        most = max(counts.values(), default=0)
        if most < len(trials):
            (last if most > counts.get(here, 0) else first).extend(trials)
    own = kinds.get(here, [])
    return [trial for trial in once(first + last) if not of_trial(trial, own)]


def _flops(trial: Trial, run: Run) -> float:
    """FLOPs of the budget that a run has spent, those of earlier calls too."""
    step = run.last(Step)
    return trial.flops * step.step / trial.config.steps if step else 0.0


def outcome(run: Run) -> dict[str, Any]:
    """Measured fields of the record of a finished run, and those of its machine.

    `seconds` are those of its steps beside other runs, and say nothing about speed.
    """
    import torch

    from tinylib.evaluate import bootstrap, document_bits

    written, header, steps = run.read_config(), run.last(Header), run.metrics()
    config = from_dict(TrainConfig, written["train"])
    training, threads = Shards(config.data), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bits, sizes = document_bits(run.model("cpu"), Shards(config.data, "val"))
    finally:
        torch.set_num_threads(threads)
    tokens = config.steps * config.total_batch_size
    return {"data": training.fingerprint, "commit": written["git_commit"], "hardware": hardware.processor(),
            "torch": written["versions"]["torch"], "threads": 1, "dtype": header.dtype if header else config.dtype,
            "date": date.today().isoformat(), "steps": config.steps, "tokens": tokens,
            "bytes": round(tokens * training.bytes / training.tokens),
            "flops": tokens * sizing.flops_per_token(config.model), "seconds": round(float(steps["dt_s"].sum()), 1),
            "curve": curve(run), "bits_per_byte": float(bits.sum() / sizes.sum()), "interval": bootstrap(bits, sizes)}


def curve(run: Run) -> list[list[float]]:
    """Training loss, thinned: last step and mean of some neighbors each."""
    thinned = downsampled(run.metrics()["loss"].to_dict(), POINTS)
    return [[int(step), loss] for step, loss in thinned.items()]


def again(name: str | Path, label: str, *, corpus: str | None = None) -> dict[str, Any]:
    """Make a record again, by its label (arm-budget-seed): whether the whole curve is the same, bit for bit.

    That is so at its own commit, on the same kind of CPU, with the same torch, threads and dtype: `differs` has those
    of them that are not the same here.  Raises UserError for a label without a record.
    """
    description = describe(name)
    found = {trial.label: own[-1] for trial in description.trials()
             if (own := of_trial(trial, records(description.records_file)))}
    if label not in found:
        raise UserError(f"again={label!r} has no record: use {join_or(found) if found else 'run first'}")
    record, trial = found[label], next(trial for trial in description.trials() if trial.label == label)
    if trial.parent:
        raise UserError(f"again={label!r} starts from another run: make that one again, {trial.parent.label!r}")
    data = Source(description, corpus).shards(trial.config.model.vocab_size)
    path = folder(description) / f"again-{trial.name}"
    run = launch(replace(trial.config, data=str(data), run_dir=str(path)), 1, threads=1, share=True, replace_ended=True)
    try:
        run.wait()
        made = outcome(run)
    finally:
        run.stop()
        run.remove()
    names = ("data", "commit", "hardware", "torch", "threads", "dtype")
    return {"label": label, "same": made["curve"] == record["curve"], "bits_per_byte": record["bits_per_byte"],
            "again": made["bits_per_byte"], "differs": {key: [record[key], made[key]] for key in names
                                                        if record[key] != made[key]}}
