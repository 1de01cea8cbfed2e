"""The subcommand app: decorated functions as verbs, presets and files as defaults, whole numbers like 4e9."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, StructConstructorSpec, StructFieldSpec

from tinylib.checks import ConfigError, UserError
from tinylib.cli import tables
from tinylib.config import PRESETS, GPTConfig, TrainConfig, from_dict

T = TypeVar("T")
Flags = Annotated[T, tyro.conf.arg(name="")]
"""A parameter whose own fields become flags without a prefix."""
App = tyro.extras.SubcommandApp
app = App()
CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.PositionalRequiredArgs,
          tyro.conf.PositionalMetavarFromFieldName, tyro.conf.HelptextFromCommentsOff)
JSON = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="Print one JSON object and nothing else.")]
RunName = Annotated[str, tyro.conf.arg(help="Run directory, or a name that `tinylib runs` lists.")]
CorpusName = Annotated[str | None, tyro.conf.arg(help="Name or path, as for corpus fetch; None takes the profile's.")]
NAMED = {GPTConfig: ("model", f"Preset ({', '.join(PRESETS)}) or JSON file of a model; other flags change it."),
         TrainConfig: ("config", "JSON file of a run, such as its config.json; other flags change it.")}


@dataclass(frozen=True)
class Result:
    """Result of a verb."""

    facts: dict[str, Any]
    """What --json prints."""
    text: str | None = None
    """What is printed otherwise; None prints the facts with their units, "" nothing."""
    ok: bool = True
    """False for exit code 1."""


class InvalidFlags(Exception):
    """A ConfigError on its way through tyro, which would show a ValueError as a mistake in the command line."""


def verb(parent: App = app, **options: Any) -> Callable[[T], T]:
    """Decorator that makes a typed function a verb of `parent`; `options` are those of SubcommandApp.command.

    Signature gives flags, docstring help.  The function returns a Result, or None to print nothing.
    """
    def register(function: Any) -> Any:
        def call(*positional: Any, json: bool, **named: Any) -> int:
            # What the library prints as it works is not part of the object.
            with contextlib.redirect_stdout(sys.stderr if json else sys.stdout):
                result = function(*positional, **named)
            if result is not None and (json or result.text != ""):
                print(to_json(result.facts) if json else result.text or tables.facts(result.facts))
            return int(result is not None and not result.ok)

        parent.command(typed(call, function, json=JSON), **options)
        return function
    return register


def typed(call: Callable[..., T], function: Callable[..., Any], **kinds: Any) -> Callable[..., T]:
    """`call` with the parameters of `function`, and its docstring if it has none; `kinds` are types of parameters.

    A name in `kinds` that is no parameter of `function` becomes a keyword that is False by default.  The annotation of
    the result is left out, because it may name a type which only type checkers import.
    """
    own = inspect.signature(function).parameters
    strings = SimpleNamespace(__annotations__={name: function.__annotations__[name] for name in own})
    hints = get_type_hints(strings, function.__globals__, include_extras=True)
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False) for name in kinds if name not in own]
    call.__name__, call.__doc__ = function.__name__, call.__doc__ or function.__doc__
    call.__annotations__ = hints | kinds
    call.__signature__ = inspect.Signature([*own.values(), *more])    # type: ignore[attr-defined]
    return call


def run(arguments: Sequence[str]) -> int:
    """Parse the command line and call its verb; returns the exit code."""
    return int(app.cli(prog="tinylib", args=arguments or ["--help"], config=CONFIG, registry=registry(arguments),
                       description="Design, train and understand tiny language models."))


def registry(arguments: Sequence[str]) -> ConstructorRegistry:
    """tyro's rules for our types: --model NAME and --config FILE set what the other flags default to."""
    found, defaults = ConstructorRegistry(), _defaults(arguments)

    @found.primitive_rule
    def whole_number(info: Any) -> PrimitiveConstructorSpec | None:
        return None if info.type is not int else PrimitiveConstructorSpec(
            nargs=1, metavar="INT", instance_from_str=lambda words: to_int(words[0]),
            is_instance=lambda value: isinstance(value, int), str_from_instance=lambda value: [str(value)])

    @found.struct_rule
    def configuration(info: Any) -> StructConstructorSpec | None:
        if info.type not in defaults or info.default is defaults[info.type]:
            return None
        own = ConstructorRegistry.get_struct_spec(dataclasses.replace(info, default=defaults[info.type]))
        name, text = NAMED[info.type]
        field = StructFieldSpec(name, str | None, None, text)    # type: ignore[arg-type]
        return StructConstructorSpec(functools.partial(_build, own.instantiate, name), (field, *own.fields))
    return found


def _build(kind: Callable[..., T], name: str, **values: Any) -> T:
    """The configuration from its flags; --model and --config were read before."""
    values.pop(name)
    try:
        return kind(**values)
    except ConfigError as error:
        raise InvalidFlags(error) from None


def _defaults(arguments: Sequence[str]) -> dict[type, Any]:
    """The configurations that the command line begins from, as --config FILE and --model NAME say."""
    file, name = _value(arguments, "config"), _value(arguments, "model")
    train = TrainConfig() if file is None else _read(TrainConfig, file)
    if name is not None and name not in PRESETS and not Path(name).is_file():
        raise UserError(f"model={name!r} is neither a preset nor a file: use one of {', '.join(PRESETS)}")
    model = train.model if name is None else PRESETS.get(name) or _read(GPTConfig, name)
    return {GPTConfig: dataclasses.replace(model), TrainConfig: train}


def _read(kind: type[T], file: str) -> T:
    """The configuration in a JSON file, or in the config.json of a run directory."""
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no JSON object: write one with tinylib.config.to_json")
    return from_dict(kind, values.get("train", values))


def _value(arguments: Sequence[str], name: str) -> str | None:
    """The last value of a flag among the words of a command line, None without one.

    >>> _value(["size", "--model", "nano", "--model=mini"], "model")
    'mini'
    """
    words = [word for argument in arguments
             for word in (argument.split("=", 1) if argument.startswith("--") else [argument])]
    return dict(itertools.pairwise(words)).get(f"--{name}")


def to_int(word: str) -> int:
    """A whole number, also as people write large ones.

    >>> to_int("4e9"), to_int("24_576")
    (4000000000, 24576)
    """
    try:
        return int(word)
    except ValueError:
        value = float(word)
        if not value.is_integer():
            raise ValueError(f"{word} is not a whole number") from None
        return int(value)


def to_json(facts: dict[str, Any]) -> str:
    """One line of JSON, also of paths, dataclasses and numpy's numbers; null for what is not a finite number."""
    return json.dumps(_plain(facts), allow_nan=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
