"""Training loop: `train(config) -> Summary`, in this process or as one rank under torchrun.

One global batch: every step has `total_batch_size` tokens, and how they are split into processes, micro-batches and
accumulation steps changes nothing but speed.  Each rank sums its losses over the number of targets of the whole batch,
so one all-reduce of one flat tensor, whose layout never changes, gives the gradient of the whole batch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinylib import checkpoint, hardware, sizing
from tinylib.allocator import hoarding
from tinylib.checkpoint import Start, find_start
from tinylib.checks import UserError
from tinylib.config import TrainConfig
from tinylib.distributed import World, init_distributed, record_failure, stop_signals
from tinylib.evaluate import score
from tinylib.events import check_tensorboard, event_files
from tinylib.model import GPT
from tinylib.optim import GradScaler, Optimizer, flat_gradient
from tinylib.recorder import Callback, Recorder
from tinylib.rundir import Eval, Header, Process, RunDirectory, State, Step, Summary, absolute, plain
from tinylib.shards import Batch, Loader, open_splits

LAUNCHED = "TINYLIB_LAUNCHED"
"""Environment variable of ranks whose run directory was prepared by `launch`: they only read its config.json."""


def train(config: TrainConfig, resume: bool = False, callback: Callback | None = None) -> Summary:
    """Train as `config` says, writing its run directory; under torchrun, as one of several ranks.

    `resume` continues from the newest checkpoint (from the start if there is none).  `callback` gets every metric
    record, on every rank, once it is written.  SIGINT and SIGTERM end the run after the current micro-batch, with a
    checkpoint of the last whole step.  Raises ConfigError, UserError or FileNotFoundError for what can't be trained,
    before any step.
    """
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    directory = RunDirectory(config.run_dir)
    if directory.metrics_file.exists() and not resume:
        raise UserError(f"run_dir={config.run_dir!r} already holds a run: resume it, or choose another name")
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        directory.remove_stale()    # before the ranks meet, so that nothing of this start is lost
    # `stop_signals` lasts until a failure is recorded: torchrun sends SIGTERM to the others as soon as a rank is dead.
    with hoarding(), ExitStack() as stack:
        try:
            world = stack.enter_context(init_distributed(config.device))
            stop_requested = stack.enter_context(stop_signals())
            trainer = Trainer(config, world, directory, stop_requested, callback)
            trainer.prepare(resume)
            trainer.compile()
            return trainer.run()
        except BaseException as error:
            record_failure(error, directory)
            raise
        finally:
            directory.remove_pid(f"rank{rank}")    # a notebook that trained lives on, its run doesn't


@dataclass(frozen=True)
class _Update:
    """An optimizer step whose values may still be computed on the device."""

    step: int
    multiplier: float
    data_s: float
    values: Tensor
    """Loss, gradient norm; on the CPU, once `done` has happened."""
    done: torch.cuda.Event | None


class Trainer:
    """One rank of one run: prepare, compile, then step, evaluate and save until the last step."""

    step: int
    """Steps done."""
    flat: Tensor
    """Every gradient of the model, then the loss, in one tensor; each weight's `.grad` is a view into it."""

    def __init__(self, config: TrainConfig, world: World, directory: RunDirectory,
                 stop_requested: Callable[[], bool] = lambda: False, callback: Callback | None = None) -> None:
        self.config, self.world, self.directory = absolute(config), world, directory
        self.stop_requested = stop_requested
        self.recorder = Recorder(directory, config, world.rank, world.size, callback)
        self.rows = config.total_batch_size // config.model.seq_len
        self._late: _Update | None = None

    def prepare(self, resume: bool = False) -> None:
        """Validate everything, then write the run directory's first files and build model and optimizer."""
        config, world = self.config, self.world
        check_tensorboard(config)
        self.accumulation = sizing.plan_batch(config.total_batch_size, config.device_batch_size, config.model.seq_len,
                                              world.size)
        self.shards, self.validation = open_splits(config.data, config.model.vocab_size)
        self.device = hardware.device(world.device.type)
        self.dtype, self.dtype_reason = (hardware.dtype(self.device) if config.dtype == "auto" else
                                         (config.dtype, "as configured"))
        self.resumed = resume
        # Rank 0 names the checkpoint to resume from, because a shared disk may show other ranks fewer of them.
        newest = max(self.directory.saved_steps(), default=0) if resume and world.rank == 0 else 0
        newest = int(world.all_reduce_sum(torch.tensor(newest)))
        start = find_start(config, self.directory, self.shards, self.dtype, newest)
        self.directory.create()    # everything is valid: from here on the run directory is written
        taken = hardware.visible_devices(world.device.type)[world.device.index or 0]
        self.directory.write_pid(f"rank{world.rank}", Process.of(devices=taken))
        if world.rank == 0 and os.environ.get(LAUNCHED) != "1":
            self.directory.write_config(config, world.size)
        self.step = start.step
        self.recorder.status("starting", self.step)
        dtype = getattr(torch, self.dtype)
        with torch.device("meta"):
            model = GPT(config.model, dtype=dtype)
        self.model = model.to_empty(device=world.device)
        self.model.recompute = config.recompute
        self.optimizer = Optimizer(self.model, config, dtype)
        self.flat = flat_gradient(self.model)
        self.scaler = GradScaler(dtype)
        self._load(start)
        if world.rank == 0 and resume:
            self.directory.truncate_metrics(self.step)

    def _load(self, start: Start) -> None:
        """Initialize the weights, or copy the checkpoint to start from into place.  Every rank does the same."""
        if start.folder is None:
            self.model.init_weights(self.config.seed, self.config.tied_std)
        elif start.state is None:
            checkpoint.load_weights(self.model, start.folder)
        else:
            checkpoint.load_training(start.folder, self.model, self.optimizer)
            self.scaler.value, self.scaler.good = start.state["loss_scale"]
            self.recorder.losses = [record.loss for record in self.directory.records()
                                    if isinstance(record, Step) and record.step <= self.step]

    def compile(self) -> None:
        """Compile the model if configured, outside the clock, and write the header record."""
        compiled, reason = self._compile()
        self.recorder.header = Header(self.step, self.world.size, self.accumulation, self.device.name,
                                      self.device.peak_flops, self.dtype, self.dtype_reason, compiled, reason)
        self.recorder.append(self.recorder.header)

    def _compile(self) -> tuple[bool, str]:
        """Compile on a batch whose gradient is thrown away; "auto" goes on without where that fails."""
        if self.config.compile == "off":
            return False, "not compiled, as configured"
        kind = self.world.device.type
        able, why = hardware.can_compile() if kind == "cpu" else (kind != "mps", "torch.compile is not reliable on MPS")
        if self.config.compile == "auto" and not able:
            return False, why
        try:
            self.model.compile_for_training((self.config.device_batch_size, self.config.model.seq_len))
            with self._batches(self.step + 1) as batches:
                self._accumulate(batches, lambda: False)
            reason = "compiled"
        except Exception as error:
            if self.config.compile == "on" or isinstance(error, torch.OutOfMemoryError):
                raise
            self.model.compile_for_training(None)
            reason = f"torch.compile failed, so training runs eagerly: {type(error).__name__}: {str(error)[:200]}"
        self.flat.zero_()
        return reason == "compiled", reason

    def run(self) -> Summary:
        """Take the remaining steps; save, then evaluate, where the configuration says so."""
        config, recorder = self.config, self.recorder
        recorder.status("running", self.step)
        recorder.start_clock()
        writes_events = config.tensorboard and self.world.rank == 0
        with (self._batches(config.steps) as batches,
              event_files(self.directory, writes_events, self.step if self.resumed else None) as recorder.write_event):
            if self.resumed and 0 < self.step < config.steps and _due(self.step, config.eval_every):
                self._evaluate()    # an evaluation comes after its checkpoint, so resuming repeats it
            while self.step < config.steps:
                if not self._step(batches):
                    if self.step not in (0, *self.directory.saved_steps()):
                        self._save()
                    return self._end("stopped", None)
                last = self.step == config.steps
                if last or _due(self.step, config.save_every):
                    self._save()
                if not last and _due(self.step, config.eval_every):
                    self._evaluate()
            val_bpb = self._evaluate()
            return self._end("stopped" if val_bpb is None else "finished", val_bpb)

    def _batches(self, last: int) -> Loader:
        """This rank's micro-batches of the steps from here to `last`."""
        config, world = self.config, self.world
        first = [(micro * world.size + world.rank) * config.device_batch_size for micro in range(self.accumulation)]
        return Loader(self.shards, map(self._batch, range(self.step, last)),
                      rows=[range(row, row + config.device_batch_size) for row in first],
                      pin=world.device if world.device.type == "cuda" else None)

    def _batch(self, step: int) -> Batch:
        return Batch(step, self.rows, self.config.model.seq_len, self.config.seed)

    def _step(self, batches: Loader) -> bool:
        """One optimizer step; returns False, with nothing changed, where a rank was asked to stop in its middle."""
        began = time.perf_counter()
        done, data_s = self._accumulate(batches, self.stop_requested)
        tally = self._tally(done < self.accumulation, time.perf_counter() - began)
        stops, *ranks = self.world.all_reduce_sum(tally).tolist()
        if stops:
            self.flat.zero_()
            return False
        self.world.all_reduce_sum(self.flat)
        self.recorder.ranks = [{"compute_s": round(compute_s, 4), "memory_bytes": int(peak)}
                               for compute_s, peak in zip(ranks[::2], ranks[1::2], strict=True)]
        self._update(data_s)
        return True

    def _tally(self, stops: bool, compute_s: float) -> Tensor:
        """This rank's summands of one all-reduce: stops, and in places of its own its seconds and peak memory.

        It is on the CPU, so that gloo adds it up while a GPU still computes.
        """
        tally = torch.zeros(1 + 2 * self.world.size, dtype=torch.float64)
        place = 1 + 2 * self.world.rank
        tally[0], tally[place], tally[place + 1] = stops, compute_s, hardware.peak_memory_bytes(self.world.device.type)
        return tally

    def _accumulate(self, batches: Loader, stop_requested: Callable[[], bool]) -> tuple[int, float]:
        """Accumulate this rank's share of the batch's loss and gradient over micro-batches, until asked to stop.

        Returns the number of micro-batches and the seconds spent waiting for data.
        """
        device, data_s, done = self.world.device, 0.0, 0
        targets = self.shards.targets(self._batch(self.step))
        while done < self.accumulation and not stop_requested():
            began = time.perf_counter()
            x_BT, y_BT = (tensor.to(device, non_blocking=tensor.is_pinned()) for tensor in next(batches))
            data_s += time.perf_counter() - began
            loss = self.model(x_BT, y_BT, reduction="sum", segment_BT=self.shards.segments(x_BT)) / targets
            (loss * self.scaler.value).backward()
            self.flat[-1] += loss.detach()
            done += 1
        return done, data_s

    def _update(self, data_s: float) -> None:
        """Clip the gradient and update the weights, all on the device; then record the step, on CUDA the one before."""
        scale, clip, gradient = self.scaler.value, self.config.grad_clip, self.flat[:-1]
        norm = gradient.norm() / scale
        values = torch.stack([self.flat[-1], norm])
        usable = not self.scaler.scales or self.scaler.update(bool(values.isfinite().all()))
        if clip or scale != 1:
            gradient.mul_((clip / norm).clamp(max=1.0) / scale if clip else 1 / scale)
        multiplier = self.optimizer.step(self.step) if usable else 0.0
        self.flat.zero_()
        self.step += 1
        late, done = self._late, None
        if self.world.device.type == "cuda":
            values, done = values.to("cpu", non_blocking=True), torch.cuda.Event()
            done.record()
        self._late = _Update(self.step, multiplier, data_s, values, done)
        if done is None:
            self._flush()
        elif late:
            self._record(late)

    def _flush(self) -> None:
        """Record the step whose values have not been read yet."""
        if self._late:
            late, self._late = self._late, None
            self._record(late)

    def _record(self, update: _Update) -> None:
        """Wait for the values of `update`, check them and append its record."""
        if update.done:
            update.done.synchronize()
        loss, norm = update.values.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)) and update.multiplier:
            # A checkpoint of the step before holds the weights that caused it.
            good = [step for step in self.directory.saved_steps() if step < update.step - 1]
            raise FloatingPointError(
                f"loss={loss}, gradient norm={norm} at step {update.step} (batch {update.step - 1} of seed "
                f"{self.config.seed}): lower the learning rates; the last good checkpoint is "
                + (f"of step {good[-1]}" if good else "none"))
        self.recorder.step(update.step, loss, update.multiplier, norm, update.data_s)

    def _evaluate(self) -> float | None:
        """Validation bits per byte, also as a record; None, and no record, where a rank was asked to stop."""
        self._flush()
        result = score(self.model, self.validation, max_tokens=self.config.eval_tokens,
                       batch_size=self.config.device_batch_size, rank=self.world.rank, world_size=self.world.size,
                       all_reduce_sum=self.world.all_reduce_sum, stop_requested=self.stop_requested)
        self.recorder.start_clock()
        if result.stops:
            return None
        self.recorder.append(Eval(self.step, result.bits_per_byte, result.loss))
        if self.world.rank == 0:
            self.directory.prune(self.config.keep)
        return result.bits_per_byte

    def _save(self) -> None:
        self._flush()    # a checkpoint waits for the check of its own step
        if self.world.rank == 0:
            state = {"step": self.step, "train": plain(self.config), "data": self.shards.fingerprint,
                     "dtype": self.dtype, "loss_scale": [self.scaler.value, self.scaler.good]}
            checkpoint.save(self.directory.checkpoint_path(self.step), self.model, self.optimizer, state,
                            Path(self.config.data) / "tokenizer")
            self.directory.prune(self.config.keep)
        self.recorder.start_clock()

    def _end(self, state: State, val_bpb: float | None) -> Summary:
        self._flush()
        return self.recorder.end(state, self.step, val_bpb, sum(weight.numel() for weight in self.model.parameters()),
                                 hardware.peak_memory_bytes(self.world.device.type))


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
