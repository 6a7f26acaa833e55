"""Build the parser of a command from the signature of its function, and read arguments and configuration files."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tta_restore.cli.commands import HELP, Command
from tta_restore.cli.signatures import REQUIRED, Parameter, plain_text, read_documentation, read_function
from tta_restore.engine.run.settings import merge, nested, parse_setting, read_settings, tidy, tidy_text, typed_value
from tta_restore.engine.run.usage import UsageError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["PROGRAM", "Parsed", "build_parser", "parse"]

PROGRAM = "tta-restore"

#: Parameters that name something -> the parameter that takes its settings.
_SETTINGS = {"method": "method_options", "model": "config"}
_MINIMUM = dict.fromkeys(("frames", "frames_per_lens", "limit", "rounds", "steps", "tile"), 1) | {"seed": 0, "seeds": 0}
_JOBS = (1, 1024)  # fewest and most threads
_COMMON = {"verbose": False, "quiet": False, "jobs": None}


class Parsed:
    """Arguments of a command.

    Attributes:
        options: keywords for the command's function.
        verbose: show tracebacks.
        quiet: print errors only.
        jobs: threads of torch; None for its default.
        text: the configuration, as YAML.
        folder: where results go; None where the command has no such folder.
    """

    def __init__(self, options: dict[str, Any], common: Mapping[str, Any], text: str, folder: Any) -> None:
        self.options, self.text = options, text
        self.folder = Path(folder) if folder else None
        self.verbose, self.quiet, self.jobs = common["verbose"], common["quiet"], common["jobs"]


def parse(name: str, command: Command, arguments: Sequence[str]) -> Parsed:
    """Read the arguments of a command; configuration files first, then the command line.

    Raises:
        SystemExit: help or the configuration was printed, or an argument is wrong (exit code 2).
        UsageError: a configuration file cannot be used.
    """
    parser = build_parser(name, command)
    rest, files, settings, printing = _take_settings(arguments, command)
    given: dict[str, Any] = {}
    for file in files:
        content = read_settings(file)
        given = merge(given, nested(content, f"{file}: ") if command.config else _checked(file, content, command))
    if command.config:
        return _parse_sections(parser, command, rest, given, printing)
    for key in _SETTINGS:
        if isinstance(given.get(key), Mapping):
            own = dict(given.pop(key))
            given |= {key: own.pop("name")} if "name" in own else {}
            if key == "model" and "checkpoint" in own:
                given["checkpoint"] = own.pop("checkpoint")
            settings[key] = own | settings.get(key, {})
    if given:
        try:
            parser.set_defaults(given)
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{', '.join(files)}: {tidy(error)}") from error
    try:
        found = _parse_arguments(parser, rest)
    except argparse.ArgumentTypeError as error:  # of a value in a file
        raise UsageError(f"{', '.join(files)}: {error}") from error
    common = {key: found.pop(key, default) for key, default in _COMMON.items()}
    for key in command.needs:
        if not found.get(key):
            parser.error(f"the following arguments are required: {_flag(command, key)}")
    found, settings = _expanded(found), _expanded(settings)
    text = _dump(found, settings)
    if printing:
        print(text, end="")
        raise SystemExit(0)
    for key, own in settings.items():
        if own:
            found[_SETTINGS[key]] = own
    return Parsed(found, common, text, found.get(command.folder))


def _checked(file: str, content: Mapping[Any, Any], command: Command) -> dict[str, Any]:
    """Return the options of a configuration file under the names of parameters, with the types that arguments have.

    Raises:
        UsageError: there is no such option, or its value has another type.
    """
    parameters = {parameter.name: parameter for parameter in _parameters(command)}
    by_flag = {flag.lstrip("-").replace("-", "_"): name for name, flags in command.flags.items() for flag in flags}
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        name = by_flag.get(name, name)
        if name not in parameters and name not in _COMMON:
            there_are = ", ".join((*parameters, *_COMMON))
            raise UsageError(f"{file}: there is no option {key!r}; there are: {there_are}")
        if name in found:
            raise UsageError(f"{file}: {name!r} is there twice, the second time as {key!r}")
        try:
            found[name] = _checked_value(name, value, parameters.get(name))
        except ValueError as error:
            raise UsageError(f"{file}: {error}") from error
    return found


def _checked_value(name: str, value: Any, parameter: Parameter | None) -> Any:
    if value is None or (name in _SETTINGS and isinstance(value, Mapping)):
        return value
    if parameter is None and name != "jobs":
        return typed_value(name, bool, value)
    if parameter is None or (name in _MINIMUM and _element(parameter.hint) is None):
        try:
            return (_at_least(*_JOBS) if parameter is None else _at_least(_MINIMUM[name]))(value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{name}: {error}") from error
    element = _element(parameter.hint)
    if element is None:
        return typed_value(name, _plain(parameter.hint), value)
    if isinstance(value, Mapping) and "Mapping" in str(parameter.hint):
        value = [f"{key}={entry}" for key, entry in value.items()]
    return typed_value(name, list[element], value if isinstance(value, list) else [value])


def _expanded(value: Any) -> Any:
    """Return values with the home folder in place of ``~``, which shells leave alone in ``-o=~/x`` and files."""
    if isinstance(value, Mapping):
        return {key: _expanded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expanded(entry) for entry in value]
    if isinstance(value, str) and (found := re.fullmatch(r"([\w.+-]+=)?(~(?:/.*)?)", value, re.DOTALL)):
        return (found[1] or "") + os.path.expanduser(found[2])
    return value


def _parse_sections(
    parser: ArgumentParser, command: Command, rest: Sequence[str], given: Mapping[str, Any], printing: bool
) -> Parsed:
    """Read a training command: sections of the file, overridden by arguments; values are checked by the recipe."""
    found = _parse_arguments(parser, rest, defaults=False)
    common = {key: found.pop(key, default) for key, default in _COMMON.items()}
    shortcuts = {key: found.pop(key) for key in ("out", "steps", "device") if key in found}
    sections, shortcuts = _expanded(merge(given, _as_plain(found))), _expanded(shortcuts)
    held = sections.get("run")  # whatever the file gives there; the recipe checks it
    run = merge(held if isinstance(held, Mapping) else {}, shortcuts)
    defaults = _as_plain(parser.get_defaults().as_dict())
    shown = {name: entry for name, entry in defaults.items() if isinstance(entry, Mapping)}
    for name, entry in shown.items():
        own = sections.get(name)
        if isinstance(own, Mapping) and own.get("preset", entry.get("preset")) != entry.get("preset"):
            shown[name] = {}  # the preset has other values for entries that are not given
    if not isinstance(run.get("out", ""), (str, Path)):
        raise UsageError(f"[run] out: expected a folder, got {run['out']}")
    text = yaml_text(merge(merge(shown, sections), {"run": run}))
    if printing:
        print(text, end="")
        raise SystemExit(0)
    folder = run.get("out", shown["run"]["out"])
    return Parsed({"config": sections, **shortcuts}, common, text, folder)


def _parse_arguments(parser: ArgumentParser, rest: Sequence[str], *, defaults: bool = True) -> dict[str, Any]:
    found = parser.parse_args(list(rest), defaults=defaults).clone(with_meta=False).as_dict()
    return {name: value for name, value in found.items() if name not in ("help", "config", "print_config")}


def build_parser(name: str, command: Command) -> ArgumentParser:
    """Return the parser of one command; ``name`` is the command, with its kind where it has several."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        """A parser whose errors take one line."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            line = re.sub(r'Parser key "([\w.]+)":', _as_flag, tidy_text(message))
            if (unknown := re.fullmatch("unrecognized arguments: (-.+)", line)) and Path(unknown[1]).is_file():
                line += f" (a file with this name is given as ./{unknown[1]})"
            print(f"{self.prog}: error: {line}; see {self.prog} --help", file=sys.stderr)
            raise SystemExit(2)

    parser = Parser(
        prog=f"{PROGRAM} {name}",
        usage=_usage(name, command) if command.config else None,
        formatter_class=_formatter(),
        epilog=_examples(command),
    )
    function = read_function(command.function)
    parser.description = function.description
    if command.config:
        _add_sections(parser, command)
    for parameter in _parameters(command):
        _add(parser, command, parameter)
    parser.add_argument("--config", metavar="FILE", help="options from a TOML, YAML or JSON file; flags override them")
    parser.add_argument("--print-config", action="store_true", help="print the configuration as YAML and exit")
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks of errors")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "-j", "--jobs", metavar="N", type=_at_least(*_JOBS), help="threads of torch (default: its own choice)"
    )
    return parser


def _usage(name: str, command: Command) -> str:
    return f"{PROGRAM} {name} [--config FILE] [--SECTION.KEY VALUE ...] [options]"


def _add_sections(parser: ArgumentParser, command: Command) -> None:
    """Add the sections of a training configuration: typed entries, and free keywords of builders."""
    schema = getattr(importlib.import_module("tta_restore.engine.train.config"), command.config)
    documented = read_documentation(schema.__doc__ or "")
    for section in dataclasses.fields(schema):
        if isinstance(section.default_factory, type) and dataclasses.is_dataclass(section.default_factory):
            parser.add_class_arguments(section.default_factory, section.name)
            parser.groups[section.name].title = section.name  # type: ignore[not-callable]
        else:
            kind = dict[str, Any] if section.default is not None else dict[str, Any] | None
            parser.add_argument(
                f"--{section.name}", type=kind, metavar="SETTINGS", default={} if section.default is not None else None,
                help=f"{documented.get(section.name, '')} Set by --{section.name}.KEY VALUE.",
            )  # fmt: skip
    parser.set_defaults({"run.out": Path(schema.DEFAULT_OUT)})


def _parameters(command: Command) -> list[Parameter]:
    """Parameters of the command's function, and those it passes on, that are options."""
    found: dict[str, Parameter] = {}
    for parameter in read_function(command.function).parameters.values():
        if _is_option(command, parameter):
            found[parameter.name] = parameter
    return list(found.values())


def _is_option(command: Command, parameter: Parameter) -> bool:
    internal = {"progress", "say", "quiet", "on_step", "config", "method_options", *command.hidden}
    return "Callable" not in str(parameter.hint) and parameter.name not in internal


def _add(parser: ArgumentParser, command: Command, parameter: Parameter) -> None:
    name, hint, default = parameter.name, parameter.hint, parameter.default
    help_text = HELP.get(name, parameter.help) if not command.config else parameter.help
    help_text = help_text or name.replace("_", " ")
    options: dict[str, Any] = {"help": _with_default(help_text, None if default is REQUIRED else default)}
    element = _element(hint)
    kind = element if element is not None else _plain(hint)
    if kind is bool and element is None:
        flags = command.flags.get(name, (f"--{name.replace('_', '-')}",))
        if default:
            flags = tuple(flag.replace("--", "--no-", 1) for flag in flags)
            parser.add_argument(*flags, dest=name, action="store_false", default=True, help=help_text)
        else:
            parser.add_argument(*flags, dest=name, action="store_true", help=help_text)
        return
    options["type"] = _at_least(_MINIMUM[name]) if kind is int and name in _MINIMUM else kind
    options["default"] = None if default is REQUIRED else default
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if not choices:
        options["metavar"] = _metavar(name, hint)
    if name in command.positional:
        if element is not None:
            options["nargs"] = "*"
            options["default"] = list(default) if isinstance(default, (list, tuple)) else []
        else:
            options["nargs"] = "?"
        parser.add_argument(name, **options)
        return
    if element is not None:
        options["nargs"] = "+"
        options["default"] = list(default) if isinstance(default, (list, tuple)) else None
    parser.add_argument(*command.flags.get(name, (f"--{name.replace('_', '-')}",)), dest=name, **options)
    if name == "method":
        parser.add_argument(
            "--method.KEY", "--method-set", dest="method_set", metavar="KEY=VALUE", nargs="?",
            help="a setting of the method, such as --method.steps 48 (or --method-set steps=48); repeatable",
        )  # fmt: skip
    if name == "model":
        parser.add_argument(
            "--model.KEY", "--set", dest="model_set", metavar="KEY=VALUE", nargs="?",
            help="a setting of the model's builder, such as --model.width 32 (or --set width=32); repeatable",
        )  # fmt: skip


def _take_settings(
    arguments: Sequence[str], command: Command
) -> tuple[list[str], list[str], dict[str, dict[str, Any]], bool]:
    """Split off configuration files, settings of named things, and ``--print-config``."""
    rest: list[str] = []
    files: list[str] = []
    settings: dict[str, dict[str, Any]] = {}
    printing = False
    waiting = list(arguments)

    def value_of(flag: str, joined: str, sep: str) -> str:
        if sep:
            return joined
        if not waiting or waiting[0].startswith("--"):
            raise UsageError(f"{flag}: expected one argument")
        return waiting.pop(0)

    takes = set(read_function(command.function).parameters)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            rest += [word, *waiting]
            break
        flag, sep, joined = word.partition("=")
        stem, dot, key = flag.removeprefix("--").partition(".")
        if flag == "--config":
            files.append(_expanded(value_of(flag, joined, sep)))
        elif flag in ("--print-config", "--print_config"):
            printing = True
        elif not command.config and flag in ("--set", "--method-set"):
            _expect_named("model" if flag == "--set" else "method", flag, takes)
            name, value = parse_setting(value_of(flag, joined, sep), flag)
            _store(settings, "model" if flag == "--set" else "method", name, value)
        elif not command.config and flag.startswith("--") and dot and stem in _SETTINGS:
            _expect_named(stem, flag, takes)
            _, value = parse_setting(f"{key}={value_of(flag, joined, sep)}", flag)
            _store(settings, stem, key, value)
        else:
            rest.append(word)
    return rest, files, settings, printing


def _expect_named(name: str, flag: str, takes: Collection[str]) -> None:
    """Refuse settings that the function of the command does not take.

    Raises:
        UsageError: it takes none of that name.
    """
    if _SETTINGS[name] not in takes:
        hint = "; settings are given with a name: --methods 'NAME[KEY=VALUE,...]'" if "methods" in takes else ""
        raise UsageError(f"{flag}: the command has no --{name}{hint}")


def _store(settings: dict[str, dict[str, Any]], name: str, key: str, value: Any) -> None:
    settings[name] = merge(settings.get(name, {}), nested({key: value}))


def _as_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def yaml_text(content: Mapping[str, Any]) -> str:
    """Return a configuration as YAML."""
    import yaml

    return yaml.safe_dump(_writable(content), sort_keys=False, allow_unicode=True)


def _dump(found: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> str:
    content = {key: value for key, value in found.items() if value is not None and not key.endswith("_set")}
    for key, own in settings.items():
        if own:
            checkpoint = {"checkpoint": content.pop("checkpoint")} if key == "model" and "checkpoint" in content else {}
            content[key] = {"name": content.get(key), **checkpoint, **own}
    return yaml_text(content)


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _writable(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple)):
        return [_writable(entry) for entry in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _element(hint: Any) -> Any:
    """Type of the elements of a sequence or of a mapping's entries written ``NAME=VALUE``; None for anything else."""
    for kind in _members(hint):
        origin = typing.get_origin(kind)
        if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            return str
        if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
            return _plain(typing.get_args(kind)[0])
    return None


def _plain(hint: Any) -> Any:
    """Return the type to parse: paths stay text, so that an empty argument is not the current folder."""
    members = [kind for kind in _members(hint) if kind is not type(None)]
    if str in members or Path in members or not members or Any in members:
        return str
    return members[0]


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _metavar(name: str, hint: Any) -> str:
    pairs = {"weights": "NAME=FILE", "models": "NAME=MODEL", "settings": "KEY=VALUE"}
    if name in pairs:
        return pairs[name]
    if "Mapping" in str(hint):
        return "NAME=FOLDER"
    singular = {"inputs": "INPUT", "out": "OUT", "seeds": "SEED", "methods": "NAME", "model": "MODEL",
                "rows": "NAME"}  # fmt: skip
    return singular.get(name, name.upper().replace("-", "_"))


def _with_default(text: str, default: Any) -> str:
    if default is None or default == "" or "default:" in text or isinstance(default, Mapping):
        return text
    shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
    return f"{text.removesuffix('.')} (default: {shown})" if shown else text


def _as_flag(found: re.Match[str]) -> str:
    return f"--{found[1].replace('_', '-')}:"


def _at_least(minimum: int, maximum: int | None = None) -> Any:
    def number(text: Any) -> int:
        try:
            value = int(text) if not isinstance(text, (bool, float)) else minimum - 1
        except (ValueError, TypeError):  # of a date in a file
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {minimum}, got {text}")
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"expected a whole number <= {maximum}, got {text}")
        return value

    return number


def _flag(command: Command, name: str) -> str:
    if name in command.positional:
        return _metavar(name, "")
    return "/".join(command.flags.get(name, (f"--{name.replace('_', '-')}",)))


def _formatter() -> Any:
    from jsonargparse import DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter):
        """Paragraphs and examples as they are written; defaults, but no types and no markup."""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            if text.startswith("examples:"):
                return text
            return "\n\n".join(textwrap.fill(" ".join(part.split()), width) for part in text.split("\n\n"))

        def _expand_help(self, action: Any) -> str:
            text = plain_text(action.help or "").replace("%%", "%")
            return _with_default(text, action.default) if "." in action.dest else text

    return Formatter


def _examples(command: Command) -> str:
    return "\n".join(["examples:", *(f"  {PROGRAM} {line}" for line in command.examples)]) if command.examples else ""
