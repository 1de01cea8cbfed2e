"""The training loop: `train(config) -> Summary`, in this process or as one rank under torchrun.

One global batch: every step has `total_batch_size` tokens, and how they are split into processes, micro-batches and
accumulation steps changes nothing but speed.  Each rank sums its losses over the number of targets of the whole batch,
so that one sum over all ranks, of one flat tensor that always lies the same way, is the gradient of the whole batch.
"""

from __future__ import annotations

import errno
import math
import os
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinylib import checkpoint, hardware, sizing
from tinylib.allocator import hoarding
from tinylib.config import TrainConfig
from tinylib.distributed import World, join, stop_signals
from tinylib.evaluate import score
from tinylib.events import check_tensorboard, event_files
from tinylib.model import GPT
from tinylib.optim import GradScaler, Optimizer
from tinylib.rundir import RunDirectory, plain
from tinylib.shards import Loader, open_splits


@dataclass(frozen=True)
class Summary:
    """What a run came to; `state` is "finished", or "stopped" where a signal asked for it."""

    state: str
    step: int
    """Steps done."""
    train_loss: float
    """Mean training loss of the last tenth of the steps, in nats per token."""
    val_bpb: float | None
    """Bits per byte of the validation documents after the last step; None for a run that was stopped."""
    tokens: int
    """Training tokens seen."""
    tokens_per_s: float
    """Median over the steps of this process' part of the run."""
    seconds: float
    """Time in this process' steps, without start-up and evaluation."""
    parameters: int
    peak_memory_bytes: int
    """Largest resident memory of rank 0, or of its GPU."""


def train(config: TrainConfig, resume: bool = False) -> Summary:
    """Train as `config` says, writing its run directory; under torchrun, as one of several ranks.

    `resume` goes on from the newest checkpoint (from the start if there is none).  SIGINT and SIGTERM end the run after
    the micro-batch at hand, with a checkpoint of the last whole step.  Raises ConfigError or ValueError for what can't
    be trained, before any step.
    """
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    directory = RunDirectory(config.run_dir)
    if directory.metrics_file.exists() and not resume:
        raise ValueError(f"run={config.run_dir!r} already holds a run: resume it, or choose another name")
    if int(os.environ.get("RANK", "0")) == 0:
        directory.remove_stale()    # before the ranks meet, so that nothing of this start is lost
    # To the end, for torchrun ends the ranks that are left as soon as one is dead, and they have to say so first.
    with hoarding(), join(config.device) as world, stop_signals() as stop_asked:
        try:
            directory.create()
            directory.write_pid(f"rank{world.rank}")
            return Trainer(config, world, directory, resume).run(stop_asked)
        except BaseException as error:
            _record_failure(error, world, directory)
            raise
        finally:
            directory.forget_pid(f"rank{world.rank}")    # a notebook that trained lives on, its run doesn't


def _record_failure(error: BaseException, world: World, directory: RunDirectory) -> None:
    """Tell the run directory why this rank ends, as far as its disk lets it; a full one must not hide the error.

    A run that had ended well and could not be resumed stays what it was.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error.add_note("the disk is full: free some space and resume; whole checkpoints are untouched, of steps "
                       f"{directory.saved_steps() or 'none'}")
    # A killed rank breaks its connections a moment before it is gone.
    deadline_s = time.monotonic() + (2.0 if world.size > 1 and isinstance(error, RuntimeError) else 0.0)
    while not (killed_ranks := directory.killed_ranks()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    for role, process in killed_ranks.items():
        error.add_note(f"{role} (pid {process.pid}) is gone without a word: something outside killed it, such as a "
                       "machine that ran out of memory")
    with suppress(OSError):
        directory.write_error(world.rank, "".join(traceback.format_exception(error)))
    with suppress(OSError):
        if world.rank == 0 and directory.status()["state"] not in ("finished", "stopped"):
            reason = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
            directory.write_status("failed", error=reason)


class Trainer:
    """One rank of one run."""

    def __init__(self, config: TrainConfig, world: World, directory: RunDirectory, resume: bool) -> None:
        check_tensorboard(config)
        self.config, self.world, self.directory, self.resumed = config, world, directory, resume
        self.ranks: list[dict[str, float]] = []
        """Of each rank, at the last step: seconds of its own work, before it waits for the others, and peak memory."""
        shape = config.model
        self.rows = config.total_batch_size // shape.seq_len
        self.accumulation = sizing.plan_batch(config.total_batch_size, config.device_batch_size, shape.seq_len,
                                              world.size)
        self.shards, self.validation = open_splits(config.data, shape.vocab_size)
        self.device = hardware.device(world.device.type)
        self.dtype, self.dtype_reason = (hardware.dtype(self.device) if config.dtype == "auto" else
                                         (config.dtype, "as asked for"))
        loop = self._resumable() if resume else None
        if world.rank == 0:    # whatever had to be refused is refused: from here on the run directory is ours
            directory.create({"train": plain(config), "world_size": world.size})
        self.say("starting", step=loop["step"] if loop else 0)
        self.model = GPT(shape, config.seed).to(world.device)
        self.model.recompute = config.recompute
        self.optimizer = Optimizer(self.model, config, getattr(torch, self.dtype))
        self.gradient = _flat_gradient(self.model)
        self.scale = GradScaler(getattr(torch, self.dtype))
        self.losses: list[float] = []
        self.step_s: list[float] = []
        self.step = self._resume(loop) if loop else 0
        if world.rank == 0 and resume:
            directory.truncate_metrics(self.step)
        self.header = self._header()
        if world.rank == 0:
            directory.append_metrics(self.header)

    def run(self, stop_asked: Callable[[], bool]) -> Summary:
        """Take the remaining steps; save, then evaluate, where the configuration says so."""
        self.say("running", step=self.step)
        with self._batches(self.config.steps) as batches, self._events() as self.also_append:
            if 0 < self.step < self.config.steps and _due(self.step, self.config.eval_every):
                self._evaluate(stop_asked)    # what comes after saving is done again
            while self.step < self.config.steps:
                if not self._step(batches, stop_asked):
                    if self.step not in (0, *self.directory.saved_steps()):
                        self._save()
                    return self._end("stopped", None)
                last = self.step == self.config.steps
                if last or _due(self.step, self.config.save_every):
                    self._save()
                if not last and _due(self.step, self.config.eval_every):
                    self._evaluate(stop_asked)
            val_bpb = self._evaluate(stop_asked)
            return self._end("stopped" if val_bpb is None else "finished", val_bpb)

    def _events(self) -> AbstractContextManager[Any]:
        """What also takes the records that rank 0 appends to the metrics."""
        if not self.config.tensorboard or self.world.rank:
            return nullcontext(lambda record: None)
        return event_files(self.directory, self.step if self.resumed else None)

    def _append(self, record: dict[str, Any]) -> None:
        if self.world.rank == 0:
            self.directory.append_metrics(record)
            self.also_append(record)

    def _batches(self, last: int) -> Loader:
        """This rank's micro-batches of the steps from here to `last`."""
        config, world = self.config, self.world
        first = [(micro * world.size + world.rank) * config.device_batch_size for micro in range(self.accumulation)]
        return Loader(self.shards, range(self.step, last), batch_size=self.rows, seq_len=config.model.seq_len,
                      seed=config.seed, rows=[range(row, row + config.device_batch_size) for row in first],
                      pin=world.device if world.device.type == "cuda" else None)

    def _step(self, batches: Loader, stop_asked: Callable[[], bool]) -> bool:
        """One optimizer step; returns False, with nothing changed, where a rank was asked to stop in its middle."""
        began = time.perf_counter()
        done, loss, data_s = self._accumulate(batches, stop_asked)
        tally = self._tally(loss, done < self.accumulation, time.perf_counter() - began)
        loss, stops, *ranks = self.world.total(tally).tolist()
        if stops:
            self.gradient.zero_()
            return False
        self.gradient.copy_(self.world.total(self.gradient))
        self.ranks = [{"compute_s": round(compute_s, 4), "memory_bytes": int(peak)}
                      for compute_s, peak in zip(ranks[::2], ranks[1::2], strict=True)]
        multiplier, norm = self._update(loss)
        self.gradient.zero_()
        self.step += 1
        self._record(loss, norm, multiplier, time.perf_counter() - began, data_s)
        return True

    def _tally(self, loss: float, stops: bool, compute_s: float) -> Tensor:
        """This rank's part of what all add up: loss, stops, and in places of its own its seconds and peak memory."""
        tally = torch.zeros(2 + 2 * self.world.size, dtype=torch.float64)
        tally[:2] = torch.tensor([loss, float(stops)], dtype=torch.float64)
        place = 2 + 2 * self.world.rank
        tally[place], tally[place + 1] = compute_s, hardware.peak_memory_bytes(self.world.device.type)
        return tally

    def _update(self, loss: float) -> tuple[float, float]:
        """Change the weights by the gradient of a batch; returns the rates' multiplier, 0 if left out, and its norm."""
        scale, clip = self.scale.value, self.config.grad_clip
        norm = float(self.gradient.norm()) / scale
        try:
            usable = self.scale.update(math.isfinite(loss) and math.isfinite(norm))
        except FloatingPointError:
            # A checkpoint of this very step holds the weights that did it.
            good = [step for step in self.directory.saved_steps() if step < self.step]
            raise FloatingPointError(f"loss={loss}, gradient norm={norm} at step {self.step + 1} (batch {self.step} of "
                                     f"seed {self.config.seed}): lower the learning rates; the last good checkpoint is "
                                     + (f"of step {good[-1]}" if good else "none")) from None
        factor = min(1.0, clip / norm if clip and norm else 1.0) / scale
        if factor != 1.0:
            self.gradient.mul_(factor)
        return (self.optimizer.step(self.step) if usable else 0.0), norm

    def _accumulate(self, batches: Loader, stop_asked: Callable[[], bool] = lambda: False) -> tuple[int, float, float]:
        """Add up this rank's share of the batch's loss and gradient, by micro-batches, until it is to stop.

        Returns how many it took, the loss, and the seconds spent on data.
        """
        config, device, data_s, done = self.config, self.world.device, 0.0, 0
        loss_sum = torch.zeros((), device=device)
        targets = self.shards.targets(self.step, batch_size=self.rows, seq_len=config.model.seq_len, seed=config.seed)
        while done < self.accumulation and not stop_asked():
            began = time.perf_counter()
            x_BT, y_BT = (tensor.to(device, non_blocking=tensor.is_pinned()) for tensor in next(batches))
            data_s += time.perf_counter() - began
            with torch.autocast(device.type, getattr(torch, self.dtype), enabled=self.dtype != "float32"):
                loss = self.model(x_BT, y_BT, reduction="sum") / targets
            (loss * self.scale.value).backward()
            loss_sum += loss.detach()
            done += 1
        return done, float(loss_sum), data_s

    def _record(self, loss: float, norm: float, multiplier: float, dt_s: float, data_s: float) -> None:
        self.losses.append(loss)
        self.step_s.append(dt_s)
        rate = self.config.total_batch_size / dt_s
        peak = self.header["peak_flops"]
        mfu = None if peak is None else rate * sizing.flops_per_token(self.config.model) / (peak * self.world.size)
        self._append({
            "kind": "step", "step": self.step, "loss": loss, "lr": multiplier, "grad_norm": norm, "dt_s": dt_s,
            "data_s": data_s, "tokens": self.step * self.config.total_batch_size, "tokens_per_s": rate, "mfu": mfu,
            "time_s": time.time()})
        self.say("running", step=self.step)

    def _evaluate(self, stop_asked: Callable[[], bool]) -> float | None:
        """Validation bits per byte, also into the metrics; None, and no trace, where a rank was asked to stop."""
        result = score(self.model, self.validation, max_tokens=self.config.eval_tokens,
                       batch_size=self.config.device_batch_size, rank=self.world.rank, world_size=self.world.size,
                       total=self.world.total, stop_asked=stop_asked)
        if result.stops:
            return None
        self._append({"kind": "eval", "step": self.step, "val_bpb": result.bits_per_byte, "val_loss": result.loss,
                      "time_s": time.time()})
        if self.world.rank == 0:
            self.directory.prune(self.config.keep)
        return result.bits_per_byte

    def _save(self) -> None:
        if self.world.rank == 0:
            loop = {"step": self.step, "train": plain(self.config), "data": self.shards.fingerprint,
                    "dtype": self.dtype, "loss_scale": [self.scale.value, self.scale.good]}
            checkpoint.save(self.directory.checkpoint_path(self.step), self.model, self.optimizer, loop,
                            Path(self.config.data) / "tokenizer")
            self.directory.prune(self.config.keep)

    def _resumable(self) -> dict[str, Any] | None:
        """What the newest checkpoint says of its loop, if there is one and it is of this very run; changes nothing."""
        if not self.directory.saved_steps():
            return None
        loop = checkpoint.read_loop(self.directory.checkpoint())
        checkpoint.refuse_another_run(loop, self.config, self.shards.fingerprint, self.dtype)
        return loop

    def _resume(self, loop: dict[str, Any]) -> int:
        """Go on where `loop` ended; returns the step.  Every rank does it, from the same files."""
        step = int(loop["step"])
        checkpoint.load_training(self.directory.checkpoint(step), self.model, self.optimizer)
        self.scale.value, self.scale.good = loop["loss_scale"]
        self.losses = [record["loss"] for record in self.directory.records()
                       if record["kind"] == "step" and record["step"] <= step]
        return step

    def _end(self, state: Any, val_bpb: float | None) -> Summary:
        tail = self.losses[-max(1, len(self.losses) // 10):]
        seconds = sum(self.step_s)
        middle = sorted(self.step_s)[len(self.step_s) // 2] if self.step_s else math.nan
        summary = Summary(state, self.step, sum(tail) / len(tail) if tail else math.nan, val_bpb,
                          self.step * self.config.total_batch_size, self.config.total_batch_size / middle, seconds,
                          sum(weight.numel() for weight in self.model.parameters()),
                          hardware.peak_memory_bytes(self.world.device.type))
        if self.world.rank == 0:
            self.directory.append_metrics({"kind": "summary", **asdict(summary)})
            self.say(state, step=self.step, val_bpb=val_bpb)
        return summary

    def say(self, state: Any, **facts: Any) -> None:
        """Rank 0 tells the run directory how things stand."""
        if self.world.rank == 0:
            self.directory.write_status(state, steps=self.config.steps, world_size=self.world.size, ranks=self.ranks,
                                        **facts)

    def _header(self) -> dict[str, Any]:
        compiled, reason = self._compile()
        if self.world.rank == 0 and self.config.compile == "auto":    # what is left to the machine is said
            print(f"{self.world.size} × {self.device.kind} ({self.device.name}); {self.dtype}: {self.dtype_reason}; "
                  f"{reason}", flush=True)
        return {"kind": "header", "step": self.step, "time_s": time.time(), "world_size": self.world.size,
                "accumulation": self.accumulation, "device": self.device.name, "peak_flops": self.device.peak_flops,
                "dtype": self.dtype, "dtype_reason": self.dtype_reason, "compiled": compiled, "compile_reason": reason}

    def _compile(self) -> tuple[bool, str]:
        """Compile the model if asked to, on a batch whose gradient is thrown away; "auto" goes on without."""
        if self.config.compile == "off":
            return False, "not compiled, as asked for"
        if self.config.compile == "auto" and self.world.device.type == "mps":
            return False, "torch.compile is not reliable on MPS"
        if self.config.compile == "auto" and self.world.device.type == "cpu" and not hardware.can_compile()[0]:
            return False, hardware.can_compile()[1]
        try:
            self.model.compile_for_training()
            with self._batches(self.step + 1) as batches:
                self._accumulate(batches)
            reason = "compiled"
        except Exception as error:
            if self.config.compile == "on":
                raise
            self.model.compile_for_training(False)
            reason = f"torch.compile failed, so training runs eagerly: {type(error).__name__}: {str(error)[:200]}"
        self.gradient.zero_()
        return reason == "compiled", reason


def _flat_gradient(model: GPT) -> Tensor:
    """One tensor that holds every gradient, in the order of the model; each weight's `.grad` is a view into it."""
    weights = list(model.parameters())
    flat = torch.zeros(sum(weight.numel() for weight in weights), device=weights[0].device)
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight)
    return flat


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
