"""One way to configure: each component has one frozen dataclass, and its flags and environment come from the fields.

A field is written once with its default, unit and sentence; `add_flags` makes `--kv-bytes` of `kv_bytes`, and
`PENSTOCK_FLAG_KV_BYTES` in the environment sets its default. Sizes accept suffixes (`512MiB`, `4GiB`). Of a bool
`--salt` and `--salt true` are the same. An unknown name is an error, on the command line and in the environment.
"""

import argparse
import dataclasses
import difflib
import itertools
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from penstock.errors import ConfigError

T = TypeVar("T")

_VARIABLE = "PENSTOCK_FLAG_"
"""(Not `PENSTOCK_PORT`: for a Service named penstock, Kubernetes sets that to an address in every pod.)"""
_TRUTHS = {**dict.fromkeys(("true", "yes", "1", "on"), True), **dict.fromkeys(("false", "no", "0", "off"), False)}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def option(default: T, sentence: str, *, unit: str = "", choices: tuple[str, ...] = ()) -> T:
    """A dataclass field with its `sentence` for --help, its unit and, where the set is closed, its choices."""
    metadata = {"help": sentence, "unit": unit, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def check_url(name: str, url: str) -> None:
    """Raises ConfigError, which calls `url` by its `name`, when it is none of HTTP."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{name} {url!r} must start with http:// or https://")


def parse_bytes(text: str) -> int:
    """`"512MiB"` -> 536870912. Raises ConfigError for anything that is not a size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?(?:ib)?)b?", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{text!r} is not a size; write for example 536870912, 512MiB or 4GiB")
    return int(float(match[1]) * _UNITS[match[2]])


class Parser(argparse.ArgumentParser):
    """An argument parser that takes flags by their whole names only; for an unknown one it names the nearest."""

    def __init__(self, *, environment: Mapping[str, str] = os.environ, **options: Any) -> None:
        """`environment` is where `add_flags` looks for defaults."""
        super().__init__(allow_abbrev=False, **options)
        self.environment = environment

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's; but in `fetch --text-only URI` the URI is no value of the flag before it."""
        words = list(sys.argv[1:] if args is None else args)
        for index, (word, following) in enumerate(itertools.pairwise(words)):
            if word == "--":
                break
            flag = self._option_string_actions.get(word)
            if flag is not None and flag.type is _parse_bool and following.lower() not in _TRUTHS:
                words[index] += "=true"
        return super().parse_known_args(words, namespace)

    def variables(self) -> set[str]:
        """What sets its flags in the environment."""
        return {_variable(flag) for flag in self._option_string_actions if flag.startswith("--")}

    def unknown_variables(self) -> set[str]:
        """Those set in the environment that are none of its flags'."""
        return {name for name in self.environment if name.startswith(_VARIABLE)} - self.variables()

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: .*?(--[\w-]+)", message)
        if unknown:
            message += f"; {_nearest(unknown[1], list(self._option_string_actions))}"
        super().error(message)


def add_flags(parser: Parser, config: type[Any], *, skip: tuple[str, ...] = ()) -> None:
    """Adds one flag per field of the dataclass `config` to `parser`, those that it inherits last."""
    hints = typing.get_type_hints(config)
    for field in sorted(dataclasses.fields(config), key=lambda field: field.name not in config.__annotations__):
        if field.name in skip or not field.init:
            continue
        text, unit = field.metadata["help"], field.metadata["unit"]
        parse = _parser_of(hints[field.name], unit)
        shown = "none" if field.default is None or field.default == "" else field.default
        form: dict[str, Any] = {"metavar": (unit or field.name).upper().replace(" ", "_")}
        if parse is _parse_bool:
            form = {"metavar": "true|false", "nargs": "?", "const": True}
        elif field.metadata["choices"]:
            form = {"choices": field.metadata["choices"]}
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=parse,
            default=_default(field, parse, parser.environment),
            **form,
            help=f"{text} (default: {shown}{' ' + unit if unit and field.default is not None else ''})".replace(
                "%", "%%"
            ),
        )


def from_flags(config: type[T], args: argparse.Namespace, **fixed: Any) -> T:
    """Builds `config` from parsed flags; `fixed` names the fields that were not flags."""
    names = {field.name for field in dataclasses.fields(typing.cast("Any", config)) if field.init}
    values = {name: getattr(args, name) for name in names if name not in fixed and hasattr(args, name)}
    return config(**values, **fixed)


def misspelt_variable(name: str, known: Iterable[str]) -> ConfigError:
    """What to say of one that sets no flag, where the `known` ones would."""
    names = {each.removeprefix(_VARIABLE): each for each in known}
    close = difflib.get_close_matches(name.removeprefix(_VARIABLE).upper(), names, n=1, cutoff=0.5)
    hint = f"did you mean {names[close[0]]}?" if close else "`penstock COMMAND --help` shows what there is"
    return ConfigError(f"{name} in the environment sets no flag of any command; {hint}")


def _variable(flag: str) -> str:
    return _VARIABLE + flag.removeprefix("--").replace("-", "_").upper()


def _default(field: dataclasses.Field[Any], parse: Callable[[str], Any], environment: Mapping[str, str]) -> Any:
    """The field's default, or what the environment sets instead. Raises ConfigError when that is no valid value."""
    name = _variable(field.name)
    text = environment.get(name)
    if text is None:
        return field.default
    try:
        value = parse(text)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ConfigError(f"{name}={text} in the environment: {error}") from error
    if field.metadata["choices"] and value not in field.metadata["choices"]:
        raise ConfigError(f"{name}={text} in the environment: valid are {', '.join(field.metadata['choices'])}")
    return value


def _nearest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(sorted(names))}"


def _parser_of(hint: Any, unit: str) -> Callable[[str], Any]:
    """The function that turns a flag's text into a value of type `hint`."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if hint is bool:
        return _parse_bool
    if hint is int and unit == "bytes":
        return _as_argument(parse_bytes)
    return typing.cast("Callable[[str], Any]", hint)


def _parse_bool(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return _TRUTHS[text.lower()]


def _as_argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    def parse_argument(text: str) -> T:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument
