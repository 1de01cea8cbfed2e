"""The subcommand app: decorated functions as verbs, presets and files as defaults, whole numbers like 4e9."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, StructConstructorSpec, StructFieldSpec

from tinylib.checks import ConfigError, UserError
from tinylib.cli import tables
from tinylib.config import PRESETS, GPTConfig, TrainConfig, from_file
from tinylib.rundir import RunDirectory

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
    """Output of --json."""
    text: str | None = None
    """Printed text without --json; None prints the facts with their units, "" nothing."""
    ok: bool = True
    """False for exit code 1."""


class InvalidFlags(Exception):
    """A ConfigError on its way through tyro, which would show a ValueError as a mistake in the command line."""


def verb(parent: App = app, **options: Any) -> Callable[[T], T]:
    """Decorator that makes a typed function a verb of `parent`; `options` are those of SubcommandApp.command.

    Signature gives flags, docstring help.  The function returns a Result, or None to print nothing; if it never returns
    one, there is no --json.
    """
    def register(function: Any) -> Any:
        def call(*positional: Any, json: bool = False, **named: Any) -> int:
            # What the library prints as it works is not part of the object.
            with contextlib.redirect_stdout(sys.stderr if json else sys.stdout):
                result = function(*positional, **named)
            if result is not None and (json or result.text != ""):
                print(to_json(result.facts) if json else result.text or tables.facts(result.facts))
            return int(result is not None and not result.ok)

        own, hints = inspect.signature(function).parameters.values(), get_type_hints(function, include_extras=True)
        flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False)
        flags = [] if hints["return"] is type(None) else [flag]
        call.__signature__ = inspect.Signature([*own, *flags])    # type: ignore[attr-defined]
        call.__annotations__ = hints | {"json": JSON}
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        parent.command(call, **options)
        return function
    return register


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

        def build(**values: Any) -> Any:
            del values[name]    # `_defaults` has read it
            try:
                return own.instantiate(**values)
            except ConfigError as error:
                raise InvalidFlags(error) from None

        field = StructFieldSpec(name, str | None, None, text)    # type: ignore[arg-type]
        return StructConstructorSpec(build, (field, *own.fields))
    return found


def _defaults(arguments: Sequence[str]) -> dict[type, Any]:
    """The configurations that the command line begins from, as --config FILE and --model NAME say."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, _ in NAMED.values():
        parser.add_argument(f"--{name}", nargs="?")
    named, _ = parser.parse_known_args(arguments)
    train = TrainConfig()
    if named.config is not None:
        file = Path(named.config)
        train = from_file(TrainConfig, file)
        if (run := RunDirectory(file.parent)).config_file == file.resolve() and run.exists():
            train = dataclasses.replace(train, run_dir=str(run.path))    # also of a run that was moved
    model = PRESETS.get(named.model, train.model)
    if named.model not in (None, *PRESETS):
        if not Path(named.model).is_file():
            raise UserError(f"model={named.model!r} is neither a preset nor a file: use one of {', '.join(PRESETS)}")
        model = from_file(GPTConfig, named.model)
    return {GPTConfig: dataclasses.replace(model), TrainConfig: train}    # a copy: `configuration` goes by identity


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
    text = json.dumps(facts, default=lambda value: dataclasses.asdict(value) if dataclasses.is_dataclass(value)
                      else value.item() if hasattr(value, "item") else str(value))
    return json.dumps(json.loads(text, parse_constant=lambda not_finite: None))
