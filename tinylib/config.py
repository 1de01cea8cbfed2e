"""Configuration of a model and of a training run: frozen dataclasses, named presets, the table of tensors.

A dataclass is the configuration in Python, its JSON is the file in the run directory, and its fields are the
flags of the command line.  Every problem of a configuration is reported at once, with the nearest legal values.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from tinylib import checks
from tinylib.checks import ConfigError, join_or, nearest_multiples

Role = Literal["embedding", "unembedding", "tied", "matrix"]
DeviceKind = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
MatrixOptimizer = Literal["muon", "adamw"]
Switch = Literal["auto", "on", "off"]
TieMethod = Literal["least-change", "mean", "embedding", "head"]
_CHOICES = {"DeviceKind": get_args(DeviceKind), "Precision": get_args(Precision), "Switch": get_args(Switch),
            "MatrixOptimizer": get_args(MatrixOptimizer), "bool": (True, False)}
"""Legal values by the annotation of a field."""
_MOST = {"depth": 1_000}    # a slip of the keyboard would take hours to build
_SHARES = ("muon_momentum", "weight_decay", "warmup_fraction", "warmdown_fraction")
"""Fields from 0 to 1; other floats are above zero."""
Config = TypeVar("Config", "GPTConfig", "TrainConfig")


@dataclass(frozen=True)
class TensorSpec:
    """One trainable tensor: its name in the model, its shape, and the role that decides its optimizer."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GPTConfig:
    """A GPT of the October-2025 nanochat architecture.

    >>> GPTConfig(depth=4, dim=512, vocab_size=24_576).n_head
    8
    >>> GPTConfig(depth=4, dim=500)
    Traceback (most recent call last):
        ...
    tinylib.checks.ConfigError: GPTConfig: dim=500 is not a multiple of head_dim=64: use dim=448 or 512, \
or a head_dim that divides 500, such as 50
    """

    depth: int = 4
    """Number of transformer blocks (L)."""
    dim: int = 512
    """Width of the residual stream (D)."""
    vocab_size: int = 24_576
    """Rows of the embedding table (V)."""
    head_dim: int = 64
    """Width of one attention head (H); it must divide `dim` and be even, because RoPE rotates pairs of channels."""
    seq_len: int = 2048
    """Context length in tokens (T)."""
    tied: bool = False
    """Whether embedding and unembedding are one tensor."""
    rope_theta: float = 10_000.0
    """Base of the RoPE frequencies."""
    softcap: float | None = 15.0
    """Logits are squashed to softcap·tanh(logits / softcap); None leaves them as they are."""

    def __post_init__(self) -> None:
        problems = list(_field_problems(self))
        if all(checks.check_int(name, getattr(self, name)) is None for name in ("dim", "head_dim")):
            problems += [_head_problem(self.dim, self.head_dim)]
        checks.raise_if("GPTConfig", problems)

    @property
    def n_head(self) -> int:
        """Number of attention heads (N)."""
        return self.dim // self.head_dim

    @property
    def mlp_dim(self) -> int:
        """Width of the hidden layer of an MLP (F)."""
        return 4 * self.dim

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every trainable tensor in the order of the model; sizing counts them, the optimizer groups them by role.

        >>> sum(tensor.size for tensor in PRESETS["goldilocks"].tensors())
        37748736
        """
        square, table = (self.dim, self.dim), (self.vocab_size, self.dim)
        specs = [TensorSpec("wte.weight", table, "tied" if self.tied else "embedding")]
        for layer in range(self.depth):
            block = f"blocks.{layer}"
            specs += [TensorSpec(f"{block}.attention.{part}.weight", square, "matrix")
                      for part in ("query", "key", "value", "output")]
            specs += [TensorSpec(f"{block}.mlp.up.weight", (self.mlp_dim, self.dim), "matrix"),
                      TensorSpec(f"{block}.mlp.down.weight", (self.dim, self.mlp_dim), "matrix")]
        if not self.tied:
            specs.append(TensorSpec("lm_head.weight", table, "unembedding"))
        return tuple(specs)


@dataclass(frozen=True)
class TrainConfig:
    """A training run: which model, on which shards, for how long, and every knob of the recipe.

    The recipe is nanochat's of October 2025 but for two fields that say so; CHANGELOG.md has what else was tried.
    The learning rates of the tables are multiplied by (dim / 768)^-0.5 when they are used.

    >>> TrainConfig(model=PRESETS["nano"], total_batch_size=5_000, device_batch_size=2)
    Traceback (most recent call last):
        ...
    tinylib.checks.ConfigError: TrainConfig: total_batch_size=5000 is not a multiple of device_batch_size × seq_len \
= 2 × 2048 = 4096: use 4096, 8192 or 12288
    """

    model: GPTConfig = field(default_factory=GPTConfig)
    data: str = "data/shards"
    """Folder of token shards, as `tinylib.shards.build` writes it."""
    run_dir: str = "runs/run"
    """Run directory to write."""
    init_from: str | None = None
    """Checkpoint folder of another run to start from: its weights; None draws new ones from the seed."""
    init_state: bool = False
    """Whether a start from `init_from` also takes its optimizer state and its place in the schedule."""
    steps: int = 1440
    """Optimizer steps."""
    total_batch_size: int = 524_288
    """Tokens in one optimizer step, over all processes and accumulation steps."""
    device_batch_size: int = 32
    """Sequences that one process takes through the model at once."""
    seed: int = 0
    """Seed of the initial weights and of the data order."""

    embedding_lr: float = 0.2
    unembedding_lr: float = 0.008
    """Twice that of October 2025: better here, and nanochat's own since (July 2026)."""
    tied_lr: float = 0.008
    """Learning rate of the one table of a tied model, which must serve both roles."""
    tied_std: float | None = None
    """Standard deviation of the first values of a tied table; None takes 0.5 / dim."""
    embedding_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the values of `wte`: bfloat16, as in nanochat on a GPU, rounds them after each update."""
    matrix_lr: float = 0.02
    """Learning rate of the matrices of the blocks."""
    matrix_optimizer: MatrixOptimizer = "muon"
    """Optimizer of the matrices; "adamw" needs a `matrix_lr` about a tenth as large."""
    adam_betas: tuple[float, float] = (0.8, 0.95)
    adam_eps: float = 1e-10
    muon_momentum: float = 0.95
    """Momentum of Muon, warmed up from 0.85 over the first 300 steps (or the first fifth of a shorter run)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices, with either optimizer; the tables have none."""
    warmup_fraction: float = 0.0
    """Share of the steps over which the learning rate rises linearly."""
    warmdown_fraction: float = 0.6
    """Share of the steps, at the end, over which the learning rate falls linearly to zero; 0.2 in October 2025."""
    grad_clip: float | None = 1.0
    """Largest norm of the gradient of all parameters together; None does not clip."""

    eval_every: int | None = 250
    """Steps between evaluations; None evaluates at the end only."""
    eval_tokens: int | None = None
    """Validation tokens of one evaluation; None takes all of them."""
    save_every: int | None = 250
    """Steps between checkpoints; None saves at the end only."""
    keep: int = 2
    """Number of newest checkpoints that stay on disk; beside them stays the one with the fewest bits per byte."""

    device: DeviceKind = "auto"
    dtype: Precision = "auto"
    """Precision of the matrix products, "auto" what the device is fast in; weights and optimizer state are float32."""
    compile: Switch = "auto"
    recompute: bool = False
    """Whether activations are computed again in the backward pass, not kept: less memory, up to a third more time."""
    tensorboard: bool = False
    """Whether the metrics also go to event files in the run directory, for `tensorboard --logdir runs`."""

    def __post_init__(self) -> None:
        problems, betas = list(_field_problems(self)), self.adam_betas
        if not isinstance(self.model, GPTConfig):
            problems += [f"model={self.model!r} is no GPTConfig: use PRESETS[name] or GPTConfig(…)"]
        if self.init_state and self.init_from is None:
            problems += ["init_state=True needs a checkpoint to take the state from: set init_from"]
        if not (isinstance(betas, tuple) and len(betas) == 2
                and all(isinstance(beta, float | int) and 0 <= beta < 1 for beta in betas)):
            problems += [f"adam_betas={betas!r} is not a pair of numbers from 0 to below 1: use (0.8, 0.95)"]
        if not any(problems):
            problems += [batch_problem(self.total_batch_size, self.device_batch_size, self.model.seq_len)]
            if self.warmup_fraction + self.warmdown_fraction > 1:
                problems += [f"warmup_fraction={self.warmup_fraction} and warmdown_fraction={self.warmdown_fraction} "
                             f"make more than the whole run: use {1 - self.warmup_fraction:g} or less for the second"]
        checks.raise_if("TrainConfig", problems)


def _field_problems(config: GPTConfig | TrainConfig) -> Iterator[str | None]:
    """The problem of each field, by its annotation; numpy's numbers, from a table, and paths become plain values."""
    for item in dataclasses.fields(config):
        name, value = item.name, checks.plain(getattr(config, item.name))
        kind, _, optional = str(item.type).partition(" | ")
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        object.__setattr__(config, name, value)
        if value is None and optional:
            continue
        if kind == "int":
            yield checks.check_int(name, value, least=0 if name == "seed" else 1, most=_MOST.get(name))
        elif kind == "float":
            yield checks.check_float(name, value, 0, 1 if name in _SHARES else math.inf, above=name not in _SHARES)
        elif kind in _CHOICES:
            yield checks.check_choice(name, value, _CHOICES[kind])
        elif kind == "str" and not (isinstance(value, str) and value):
            yield f"{name}={value!r} is not a folder's name: use a path"


def to_json(config: GPTConfig | TrainConfig) -> str:
    """The configuration as JSON text, every field spelled out."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(kind: type[Config], text: str) -> Config:
    """The configuration that `to_json` wrote, also inside a run's config.json; raises ConfigError for any other text.

    >>> from_json(GPTConfig, to_json(PRESETS["nano"])) == PRESETS["nano"]
    True
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(kind.__name__, [f"the text is not JSON: {error}"]) from None
    if not isinstance(values, dict):
        raise ConfigError(kind.__name__, [f"the text holds no JSON object: write {kind.__name__} with to_json"])
    return from_dict(kind, values.get("train", values))


def from_file(kind: type[Config], file: str | os.PathLike[str]) -> Config:
    """The configuration in a file that `to_json` filled, or in a run's config.json; ConfigError names the file."""
    try:
        return from_json(kind, Path(file).read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(str(file), error.problems) from None


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """A configuration from a dictionary; raises ConfigError for a name that is no field."""
    known = sorted(item.name for item in dataclasses.fields(kind))
    checks.raise_if(kind.__name__, [f"{name}={values[name]!r} is not a field: fields are {', '.join(known)}"
                                    for name in sorted(set(values) - set(known))])
    values = dict(values)
    if isinstance(values.get("model"), dict):
        values["model"] = from_dict(GPTConfig, values["model"])
    if isinstance(values.get("adam_betas"), list):
        values["adam_betas"] = tuple(values["adam_betas"])
    return kind(**values)


def batch_problem(total_batch_size: int, device_batch_size: int, seq_len: int, world_size: int = 1) -> str | None:
    """The one rule for batches: total_batch_size is a multiple of device_batch_size × seq_len × world_size.

    >>> batch_problem(9, 2, 1, world_size=2)
    'total_batch_size=9 is not a multiple of device_batch_size × seq_len × processes = 2 × 1 × 2 = 4: use 4, 8 or 12'
    """
    factors = {"device_batch_size": device_batch_size, "seq_len": seq_len}
    factors |= {"processes": world_size} if world_size > 1 else {}
    unit = math.prod(factors.values())
    if total_batch_size % unit == 0:
        return None
    middle = max(2, round(total_batch_size / unit))    # of the three nearest multiples above zero
    return (f"total_batch_size={total_batch_size} is not a multiple of {' × '.join(factors)} = "
            f"{' × '.join(map(str, factors.values()))} = {unit}: use "
            + join_or(unit * count for count in (middle - 1, middle, middle + 1)))


def _head_problem(dim: int, head_dim: int) -> str | None:
    """Problem with heads of `head_dim` in a width of `dim`, with the nearest legal values; None if there is none."""
    if head_dim % 2:
        return checks.check_int("head_dim", head_dim, least=2, step=2, why="RoPE rotates pairs of channels")
    if dim % head_dim == 0:
        return None
    divisors = [size for size in range(2, dim + 1, 2) if dim % size == 0]
    nearest = min(divisors, key=lambda size: abs(size - head_dim), default=None)
    return (f"dim={dim} is not a multiple of head_dim={head_dim}: use dim={join_or(nearest_multiples(dim, head_dim))}"
            + (f", or a head_dim that divides {dim}, such as {nearest}" if nearest else ""))


PRESETS: dict[str, GPTConfig] = {
    "goldilocks": GPTConfig(depth=4, dim=512, vocab_size=24_576),
    "extremist": GPTConfig(depth=29, dim=192, vocab_size=65_536),
    "conventional": GPTConfig(depth=7, dim=384, vocab_size=32_768),
    "conservative-25m": GPTConfig(depth=3, dim=192, vocab_size=65_536, head_dim=96),
    "balanced-25m": GPTConfig(depth=6, dim=384, vocab_size=16_384, head_dim=128),
    "efficient-25m": GPTConfig(depth=7, dim=448, vocab_size=8_192, head_dim=112),
    "nanochat-d20": GPTConfig(depth=20, dim=1_280, vocab_size=65_536, head_dim=128),
    "nanochat-d26": GPTConfig(depth=26, dim=1_664, vocab_size=65_536, head_dim=128),
    "nanochat-d32": GPTConfig(depth=32, dim=2_048, vocab_size=65_536, head_dim=128),
    "nano": GPTConfig(depth=4, dim=64, vocab_size=3_072),
    "micro": GPTConfig(depth=4, dim=128, vocab_size=6_144),
    "mini": GPTConfig(depth=4, dim=256, vocab_size=12_288),
}
"""Named shapes: nine that were worked out by hand and three small members of the balanced family V = 12·L·D."""


def preset_name(config: GPTConfig) -> str | None:
    """The name of the preset that equals `config`; None if there is none.

    >>> preset_name(PRESETS["nano"]), preset_name(dataclasses.replace(PRESETS["nano"], seq_len=64))
    ('nano', None)
    """
    return next((name for name, preset in PRESETS.items() if preset == config), None)
