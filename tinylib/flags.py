"""From the words of a command line to values: tyro, with presets and with whole numbers that may be written 4e9.

The flags are the fields of the dataclasses and the parameters of typed functions; none is spelled out a second time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylib.config import PRESETS, GPTConfig, TrainConfig, from_dict, from_json

if TYPE_CHECKING:
    from tinylib.sizing import Plan


def parse(target: Any, arguments: list[str], **options: Any) -> Any:
    """tyro on `target`, with whole numbers that may be written 4e9."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def whole_number(info: Any) -> Any:
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1, metavar="INT", instance_from_str=lambda words: _whole_number(words[0]),
            is_instance=lambda value: isinstance(value, int), str_from_instance=lambda value: [str(value)])

    function = getattr(target, "func", target)
    options.setdefault("prog", f"python -m tinylib {function.__name__.strip('_').replace('_', ' ')}")
    return tyro.cli(_without_return(target), args=arguments, registry=registry,
                    description=str(function.__doc__).split("\n\n")[0],
                    config=(tyro.conf.PositionalRequiredArgs,), **options)


def _without_return(target: Any) -> Any:
    """`target` without the annotation of its result, which may name a type that is only known to type checkers."""
    if not isinstance(target, types.FunctionType):
        return target

    copy = types.FunctionType(target.__code__, target.__globals__, target.__name__, target.__defaults__)
    copy.__kwdefaults__ = target.__kwdefaults__
    copy.__annotations__ = {name: kind for name, kind in target.__annotations__.items() if name != "return"}
    return copy


def _whole_number(word: str) -> int:
    """A whole number, also as people write large ones.

    >>> _whole_number("4e9"), _whole_number("24_576")
    (4000000000, 24576)
    """
    try:
        return int(word)
    except ValueError:
        value = float(word)
        if value != int(value):
            raise ValueError(f"{word} is not a whole number") from None
        return int(value)


class _Lenient:
    """Lets flags pass unchecked, so that the configuration made of them reports every problem, in one line."""

    def __post_init__(self) -> None:
        return


@dataclasses.dataclass(frozen=True)
class _ModelFlags(_Lenient, GPTConfig):
    """The model; --model NAME chooses the preset that the other flags change."""


@dataclasses.dataclass(frozen=True)
class _TrainFlags(_Lenient, TrainConfig, GPTConfig):
    """A training run; --model NAME chooses the preset that the other flags change, --config FILE a whole run.
    --resume goes on from the newest checkpoint.  --slurm FILE trains nothing but writes a batch file, for --nnodes N
    machines with --nproc-per-node N processes each.
    """

    model: None = dataclasses.field(init=False, default=None)    # type: ignore[assignment] - the flags of GPTConfig spell it out


def taken(arguments: list[str], *options: str, flags: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """The values of `options` (and whether `flags` are given), and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in options:
        parser.add_argument(option)
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    found, rest = parser.parse_known_args(arguments)
    return vars(found), rest


def _preset(name: str | None) -> GPTConfig:
    """The preset called `name`, or the model in the file of that name."""
    if name is not None and name not in PRESETS and Path(name).is_file():
        return from_json(GPTConfig, Path(name).read_text(encoding="utf-8"))
    if name is not None and name not in PRESETS:
        raise ValueError(f"model={name!r} is neither a preset nor a file: use one of {', '.join(PRESETS)}")
    return PRESETS[name or "goldilocks"]


def _fields(config: Any, kind: type) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(kind)}


def with_model(function: Callable[..., Any], arguments: list[str]) -> Any:
    """Call `function(config, …)` with the model that the flags say, and its own parameters as further flags."""
    if {"-h", "--help"} & set(arguments):
        _help(function.__name__.strip("_"), functools.partial(function, PRESETS["goldilocks"]), _ModelFlags)
    named, rest = taken(arguments, "--model")
    default = _ModelFlags(**_fields(_preset(named["model"]), GPTConfig))
    flags, rest = parse(_ModelFlags, rest, default=default, return_unknown_args=True)
    return parse(functools.partial(function, GPTConfig(**_fields(flags, GPTConfig))), rest)


def _help(verb: str, *targets: Any) -> None:
    for target in targets:
        try:
            parse(target, ["--help"], prog=f"python -m tinylib {verb}")
        except SystemExit:
            continue
    raise SystemExit(0)


def train_config(arguments: list[str]) -> TrainConfig:
    """--config FILE (a TrainConfig, or the config.json of a run), or a preset with flags that change it."""
    if {"-h", "--help"} & set(arguments):
        _help("train", _TrainFlags)
    named, rest = taken(arguments, "--model", "--config")
    if named["config"]:
        values = json.loads(Path(named["config"]).read_text(encoding="utf-8"))
        if rest or named["model"]:
            raise ValueError("config=FILE is the whole run and takes no other flag: change the file instead")
        return from_dict(TrainConfig, values.get("train", values))
    model = _preset(named["model"])
    names = {field.name: field.default for field in dataclasses.fields(TrainConfig) if field.name != "model"}
    default = _TrainFlags(**_fields(model, GPTConfig), **names)
    flags = parse(_TrainFlags, rest, default=default, prog="python -m tinylib train")
    return TrainConfig(model=GPTConfig(**_fields(flags, GPTConfig)), **{name: getattr(flags, name) for name in names})


def train_command(plan: Plan) -> str:
    """The command that carries a plan out, on each of its nodes.

    >>> from tinylib.sizing import plan
    >>> train_command(plan(PRESETS["mini"], total_batch_size=65_536)).split(" -m ")
    ['torchrun --standalone --nproc-per-node=1', 'tinylib train --model mini --steps 2880 --total-batch-size 65536 \
--device-batch-size 32']
    """
    names = [name for name, preset in PRESETS.items() if preset == plan.config]
    changed = {field.name: getattr(plan.config, field.name) for field in dataclasses.fields(GPTConfig)
               if getattr(plan.config, field.name) != field.default}
    flags = {"model": names[0]} if names else changed
    flags |= {"steps": plan.steps, "total_batch_size": plan.total_batch_size,
              "device_batch_size": plan.device_batch_size} | ({"recompute": True} if plan.recompute else {})
    nodes = "--standalone" if plan.nnodes == 1 else (
        f"--nnodes={plan.nnodes} --rdzv-backend=c10d --rdzv-id=tinylib --rdzv-endpoint=HOST:29400")
    words = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in flags.items()]
    return f"torchrun {nodes} --nproc-per-node={plan.nproc_per_node} -m tinylib train " + " ".join(words)


def part(verb: str, arguments: list[str], **parts: Callable[..., Any]) -> Callable[..., Any]:
    """The part of `verb` that the first argument names."""
    if not arguments or arguments[0] not in parts:
        given = repr(arguments[0]) if arguments else "nothing"
        raise ValueError(f"{given} is not a part of this verb: use " + ", ".join(f"{verb} {part}" for part in parts))
    return parts[arguments[0]]
