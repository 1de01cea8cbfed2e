"""Description of an experiment: a TOML file of arms, blocks, seeds and budgets, checked as a whole."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from tinylib import checks, sizing
from tinylib.checks import ConfigError, UserError
from tinylib.config import PRESETS, GPTConfig, TieMethod, TrainConfig
from tinylib.rundir import plain

FOLDER = Path(__file__).resolve().parent.parent.parent / "data" / "experiments"
"""The descriptions of this checkout; records are in the folder `records` beside it."""
RATES = tuple(item.name for item in dataclasses.fields(TrainConfig) if item.name.endswith("_lr"))
_MODEL = {item.name for item in dataclasses.fields(GPTConfig)}
_PLACES = {"data", "run_dir", "save_every", "keep", "eval_every", "eval_tokens", "tensorboard"}
"""Fields of TrainConfig that change no weight: they are set here, and no arm may set them."""
_RECIPE = {item.name for item in dataclasses.fields(TrainConfig)} - _PLACES - {"model", "steps", "seed", "init_state"}
_START = ("init_from", "convert", "at")
_ARM = _MODEL | _RECIPE | {"size", "heads", "share", *_START}


@dataclass(frozen=True)
class Text:
    """The corpus of an experiment: a name that `corpus.load` knows, or the hash of a text that the caller has."""

    characters: int
    """Training characters, from the start; a prefix, because validation is whole in any case."""
    name: str | None = None
    sha256: str | None = None
    """That of the corpus's manifest; the text is at --corpus PATH or $TINYLIB_CORPUS."""
    source: str = ""
    """Origin of the text, or of a similar one."""

    def __post_init__(self) -> None:
        both = "name and sha256 are two ways to say which text it is: use one of them"
        checks.raise_if("text", [checks.check_int("characters", self.characters),
                                 both if (self.name is None) == (self.sha256 is None) else None])


@dataclass(frozen=True)
class Block:
    """Arms that are compared with each other at one budget."""

    prediction: str
    rule: str
    """Decision rule: the conclusion from each possible result; written before the runs."""
    arms: list[str]
    budget: str
    seeds: list[int]
    reference: str | None = None
    """The arm that the others are compared with, by default the first."""
    rates: list[float] = field(default_factory=lambda: [1.0])
    """Each arm is run with all its learning rates times each of these; the references are then those times 1."""
    least: float = 0.005
    """Least difference in bits per byte that counts, whatever its interval."""
    equal_size: bool = False
    """Whether the arms are claimed to have equally many parameters, within 2%."""


@dataclass(frozen=True)
class Trial:
    """One run to make: an arm, a seed and a budget."""

    size: str
    base: str
    """The arm in the description."""
    arm: str
    """The same, with the factor of the learning rates if that is not 1."""
    seed: int
    budget: str
    flops: float
    """The budget."""
    config: TrainConfig
    """Without its folders; `init_from` is the name of the parent, with `convert` and `at`."""
    parent: Trial | None = None
    """The run from which this one starts."""
    convert: str | None = None
    """Conversion of the parent's checkpoint: "untie", or a method of `tying.tie`."""
    at: float | None = None
    """Share of the steps after which it leaves the parent, with optimizer state and schedule; None starts a schedule
    of its own at the parent's end."""

    @property
    def start_step(self) -> int | None:
        """Step of the parent's checkpoint from which this run starts; None is the last."""
        return None if self.parent is None or self.at is None else round(10 * self.at) * self.parent.config.save_every

    @property
    def label(self) -> str:
        """Arm, budget and seed as one word."""
        return re.sub(r"[^\w.-]+", "-", f"{self.arm}-{self.budget}-{self.seed}".replace("×", "x"))

    @property
    def name(self) -> str:
        """Name of the run directory: the label and a hash of the configuration, which a description may change."""
        return f"{self.label}-{hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:6]}"

    @property
    def identity(self) -> dict[str, Any]:
        """The configuration without what changes no result."""
        return identity(plain(self.config))


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stored configuration that decide the result; fields newer than the record have their defaults."""
    usual = plain(TrainConfig())
    values = {**usual, **config, "model": {**usual["model"], **config["model"]}}
    return {name: values[name] for name in sorted(values) if name not in _PLACES}


@dataclass(frozen=True)
class Description:
    """An experiment as its file describes it."""

    path: Path
    question: str
    text: Text
    every: dict[str, Any]
    """Fields of every arm, which an arm may change."""
    arms: dict[str, dict[str, Any]]
    budgets: dict[str, float]
    """FLOPs by name."""
    blocks: dict[str, Block]

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def records_file(self) -> Path:
        """The records, in the folder beside that of the descriptions."""
        return self.path.parent.parent / "records" / f"{self.name}.jsonl"

    def block_trials(self, block: Block) -> Iterator[Trial]:
        """The runs of a block, seed by seed, so that comparisons of all arms come early."""
        for seed in block.seeds:
            for arm in block.arms:
                for factor in block.rates:
                    yield self._trial(arm, seed, block.budget, factor)

    def paired(self) -> list[list[Trial]]:
        """Runs that need one kind of machine, because they are compared: those of a block and seed, parents first."""
        blocks = [replace(block, seeds=[seed]) for block in self.blocks.values() for seed in block.seeds]
        return [once(one for trial in self.block_trials(block) for one in (*ancestors(trial), trial))
                for block in blocks]

    def trials(self) -> list[Trial]:
        """All runs in the order of the blocks, each after its parent; one that serves two blocks is there once."""
        return once(trial for trials in self.paired() for trial in trials)

    def _trial(self, arm: str, seed: int, budget: str, factor: float = 1.0) -> Trial:
        values = self.every | self.arms[arm]
        parent, convert, at = (values.pop(name, None) for name in _START)
        before = self._trial(parent, seed, budget, factor) if parent else None
        title = arm if factor == 1 else f"{arm}, rates ×{factor:g}"
        try:
            config = _config(values, self.budgets[budget], seed, factor)
            checks.raise_if("start", _start_problems(config.model, before and before.config.model, convert, at))
        except ConfigError as error:
            raise ConfigError(f"{self.path.name}, arm {arm!r}, budget {budget!r}", error.problems) from None
        start = before and ", ".join([before.name, *[convert] * bool(convert), *[f"at {at}"] * bool(at)])
        return Trial(values["size"], arm, title, seed, budget, self.budgets[budget],
                     replace(config, init_from=start, init_state=bool(at)), before, convert, at)


def once(trials: Iterable[Trial]) -> list[Trial]:
    """The trials in their order, each configuration once."""
    return list({trial.name: trial for trial in trials}.values())


def ancestors(trial: Trial) -> list[Trial]:
    """The runs that a run starts from, the first first."""
    return [] if trial.parent is None else [*ancestors(trial.parent), trial.parent]


def _start_problems(model: GPTConfig, parent: GPTConfig | None, convert: str | None,
                    at: float | None) -> Iterator[str | None]:
    """Problems with a start from the run of `parent`."""
    if parent is None:
        yield "convert and at need a run to start from: set init_from" if convert or at else None
        return
    if convert:
        yield checks.check_choice("convert", convert, get_args(TieMethod) if model.tied else ["untie"])
    if replace(model, tied=model.tied != bool(convert)) != parent:
        yield "its model is not that of init_from: only tied may differ, and must where convert is set"
    if at is not None:
        yield checks.check_choice("at", at, [tenth / 10 for tenth in range(1, 10)])


def _config(values: Mapping[str, Any], flops: float, seed: int, factor: float) -> TrainConfig:
    """The configuration of one run, with as many steps as the budget gives it."""
    base, share = PRESETS[values["size"]], values.get("share", 1.0)
    dim, heads = values.get("dim", base.dim), values.get("heads", base.n_head)
    checks.raise_if("shape", [checks.check_int("dim", dim, least=heads, step=heads, why=f"{heads} heads")])
    shape = {"dim": dim, "head_dim": dim // heads} | {name: values[name] for name in _MODEL & values.keys()}
    recipe = {name: values[name] for name in _RECIPE & values.keys()}
    recipe |= {name: factor * recipe.get(name, getattr(TrainConfig, name)) for name in RATES if factor != 1}
    model = replace(base, **shape)
    batch = recipe.get("total_batch_size", TrainConfig.total_batch_size)
    step_flops = sizing.flops_per_token(model) * batch
    steps = round(share * flops / step_flops)
    checks.raise_if("budget", [None if steps else f"{share * flops:.3g} FLOPs give no step, which takes "
                               f"{step_flops:.3g}: use a larger budget or a smaller total_batch_size"])
    fixed = {"device": "cpu", "dtype": "float32", "compile": "off"}
    return TrainConfig(model=model, **{**fixed, **recipe}, steps=steps, seed=seed, eval_every=None,
                       eval_tokens=model.seq_len, save_every=max(1, steps // 10), keep=11)


def describe(name: str | Path) -> Description:
    """The description called `name` in `data/experiments`, or the one at that path.

    Raises FileNotFoundError where there is none; ConfigError, with the nearest legal names, where one
    can't be run.
    """
    path = Path(name) if str(name).endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml"))) or "none"
        raise FileNotFoundError(f"no experiment {str(name)!r}: there are {there}, and paths that end in .toml")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    fields = {"question", "text", "every", "arms", "budgets", "blocks"}
    checks.raise_if(path.name, [*_names("", values, fields), *_missing("", values, fields)])
    arms = {"every": values["every"]} | values["arms"]
    checks.raise_if(path.name, [problem for arm in arms for problem in _names(f"arm {arm}: ", arms[arm], _ARM)])
    blocks = {name: _build(Block, f"{path.name}, block {name!r}", block) for name, block in values["blocks"].items()}
    found = Description(path, values["question"], _build(Text, f"{path.name}, text", values["text"]), values["every"],
                        values["arms"], values["budgets"], blocks)
    checks.raise_if(path.name, _problems(found))
    checks.raise_if(path.name, _unequal(found))
    return found


def _problems(description: Description) -> Iterator[str | None]:
    """Problems with numbers, and with names that must be those of another table."""
    arms, budgets, above = description.arms, description.budgets, []
    yield from (checks.check_float(f"budget {name}", flops, 0, above=True) for name, flops in budgets.items())
    for arm, values in arms.items():
        yield checks.check_choice(f"arm {arm}: size", (description.every | values).get("size"), PRESETS)
        if "init_from" in values:
            yield checks.check_choice(f"arm {arm}: init_from", values["init_from"], above or ["an arm above it"])
        above.append(arm)
    for name, block in description.blocks.items():
        yield checks.check_choice(f"block {name}: budget", block.budget, budgets)
        yield from (checks.check_float(f"block {name}: rate", rate, 0, above=True) for rate in block.rates)
        yield from (checks.check_choice(f"block {name}: arm", arm, arms) for arm in block.arms)
        yield from (checks.check_int(f"block {name}: seed", seed, least=0) for seed in block.seeds)
        if block.reference is not None:
            yield checks.check_choice(f"block {name}: reference", block.reference, block.arms)


def _unequal(description: Description) -> Iterator[str]:
    """Problems with arms of a block that claims equal size; makes every run of it, so also their own problems."""
    description.trials()
    for name, block in description.blocks.items():
        totals = {trial.arm: sizing.parameters(trial.config.model).total for trial in description.block_trials(block)}
        wanted = totals[block.reference or block.arms[0]]
        yield from (f"block {name}: arm {arm} has {total:,} parameters, more than 2% from the reference's {wanted:,}: "
                    "change its shape, or leave out equal_size" for arm, total in totals.items()
                    if block.equal_size and abs(total / wanted - 1) > 0.02)


def _build(kind: type[Any], owner: str, values: Mapping[str, Any]) -> Any:
    fields = dataclasses.fields(kind)
    needed = {item.name for item in fields
              if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING}
    checks.raise_if(owner, [*_names("", values, {item.name for item in fields}), *_missing("", values, needed)])
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(owner, error.problems) from None


def _names(where: str, values: Mapping[str, Any], legal: set[str]) -> Iterator[str]:
    """A problem for each name that is not legal, with the nearest that are."""
    for name in values.keys() - legal:
        near = difflib.get_close_matches(name, sorted(legal), cutoff=0.5) or sorted(legal)
        yield f"{where}{name}={values[name]!r} is not a field: use {checks.join_or(near)}"


def _missing(where: str, values: Mapping[str, Any], needed: Iterable[str]) -> Iterator[str]:
    yield from (f"{where}{name} is missing: write it" for name in sorted(set(needed) - values.keys()))
