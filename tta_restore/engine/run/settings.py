"""Settings given by name: configuration files, ``KEY=VALUE`` arguments, and a name with its settings."""

from __future__ import annotations

import json
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tta_restore.data.io.formats import irregular_kind
from tta_restore.engine.run.usage import UsageError

__all__ = [
    "Named",
    "merge",
    "nested",
    "parse_setting",
    "read_settings",
    "readable_hints",
    "tidy",
    "tidy_text",
    "typed_keywords",
    "typed_value",
]


_MOST_ENTRIES = 100_000  # of a configuration


@dataclass(frozen=True)
class Named:
    """A name and the settings of what it names, such as a method and its ``steps``.

    Attributes:
        name: registered name or ``module:name``.
        settings: keywords.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def of(value: str | Named) -> Named:
        """Return the value, or a name without settings."""
        return value if isinstance(value, Named) else Named(value)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the content of a TOML, YAML or JSON file.

    Raises:
        UsageError: the file cannot be read, is empty, holds no table, or has a key twice.
    """
    if not str(path):
        raise UsageError("--config: expected a value, got an empty argument")
    path = Path(path)
    try:
        if (special := irregular_kind(path)) is not None:
            raise UsageError(f"{path}: not a regular file: {special}")
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark first
        suffix = path.suffix.lower()
        if suffix == ".json":
            content = json.loads(text, object_pairs_hook=_distinct)
        elif suffix == ".toml":
            import tomllib

            content = tomllib.loads(text)
        elif suffix in (".yaml", ".yml"):
            content = _load_yaml(text, path)
        else:
            raise UsageError(f"{path}: expected a file that ends in .toml, .yaml, .yml or .json")
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UsageError:
        raise
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None
    except ValueError as error:  # the errors of tomllib and json, and of text that is not UTF-8
        raise UsageError(f"{path}: {error}") from None
    if not content:
        raise UsageError(f"{path}: the file is empty")
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected names and values, got {type(content).__name__}")
    return content


def _load_yaml(text: str, path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        UsageError: it is damaged, or its aliases stand for too many entries.
        ValueError: a mapping has a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """A safe loader for which a mapping has each key once; one that is merged in (``<<``) may be overridden."""

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            _expect_distinct([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            super().flatten_mapping(node)

    try:
        content = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    _expect_small(content, path)
    return content


def _distinct(entries: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the entries of a mapping in JSON.

    Raises:
        ValueError: two of them have the same key.
    """
    _expect_distinct([key for key, _ in entries])
    return dict(entries)


def _expect_distinct(keys: Sequence[str]) -> None:
    for key, count in Counter(keys).items():
        if count > 1:
            raise ValueError(f"{key!r} is there {'twice' if count == 2 else f'{count} times'}")


def _expect_small(content: Any, path: Path) -> None:
    """Refuse a file whose aliases stand for more entries than any configuration has.

    Raises:
        UsageError: it does.
    """
    left = _MOST_ENTRIES
    waiting = [content]
    while waiting:
        entry = waiting.pop()
        inner = list(entry.values()) if isinstance(entry, dict) else entry if isinstance(entry, list) else []
        left -= len(inner)
        if left < 0:
            raise UsageError(f"{path}: more than {_MOST_ENTRIES} entries")
        waiting += inner


def parse_setting(text: str, flag: str = "--set") -> tuple[str, Any]:
    """Split ``KEY=VALUE``; the value is read as JSON where it is JSON, else as text.

    Raises:
        UsageError: the text has no ``=`` or no key, or its value is a mapping with a key twice.
    """
    name, found, value = text.partition("=")
    if not (name and found):
        raise UsageError(f"{flag}: expected KEY=VALUE, got {text!r}")
    value = {"True": "true", "False": "false", "None": "null"}.get(value, value)
    try:
        return name, json.loads(value, object_pairs_hook=_distinct)
    except json.JSONDecodeError:
        return name, text.partition("=")[2]
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        where = flag if flag.endswith(f".{name}") else f"{flag} {name}"
        raise UsageError(f"{where}: {reason}") from None


def nested(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return mappings for dotted keys: ``{"a.b": 1}`` -> ``{"a": {"b": 1}}``.

    Args:
        settings: values by key.
        where: begins the message of an error.

    Raises:
        UsageError: an entry is given twice, with dots and within a mapping.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        first, dot, rest = str(key).partition(".")
        entry = {first: nested({rest: value}, where) if dot else value}
        if (twice := _overlap(found, entry)) is not None:
            raise UsageError(f"{where}{twice!r} is there twice")
        found = merge(found, entry)
    return found


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Return the dotted name of an entry of the first mapping that the second one would override."""
    for key in first.keys() & second.keys():
        held, value = first[key], second[key]
        if not (isinstance(held, Mapping) and isinstance(value, Mapping)):
            return str(key)
        if (inner := _overlap(held, value)) is not None:
            return f"{key}.{inner}"
    return None


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return both mappings in one; the second overrides the first, mappings in them are merged."""
    found = dict(first)
    for key, value in second.items():
        held = found.get(key)
        found[key] = merge(held, value) if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return found


def typed_value(name: str, hint: Any, value: Any) -> Any:
    """Return a value as a type hint has it: numbers checked, mappings turned into dataclasses.

    Raises:
        ValueError: the value is of another type; the message starts with ``name``.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except ValueError:  # a type without a text form, such as a callable
        return value
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except ArgumentError as error:
        raise ValueError(f"{name}: {tidy(error)}") from error


def typed_keywords(function: Callable[..., Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords of a user's function or class with the numbers and texts of its annotations.

    Raises:
        ValueError: a value is of another type.
    """
    hints = readable_hints(function.__init__ if isinstance(function, type) else function)
    plain = {name: hint for name, hint in hints.items() if _is_plain(hint)}
    return {name: typed_value(name, plain[name], value) if name in plain else value for name, value in keywords.items()}


def readable_hints(function: Any) -> dict[str, Any]:
    """Return the annotations of a function that can be evaluated; some exist for type checkers only."""
    found: dict[str, Any] = {}
    space = getattr(function, "__globals__", {})
    for name, annotation in getattr(function, "__annotations__", {}).items():
        try:
            one = types.SimpleNamespace(__annotations__={name: annotation})
            found |= typing.get_type_hints(one, globalns=space, localns=space)
        except (NameError, TypeError, AttributeError):
            continue
    return found


def _is_plain(hint: Any) -> bool:
    """Return whether a hint is made of numbers, texts and sequences of them."""
    if typing.get_origin(hint) is typing.Literal:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, list):
        return all(part is Ellipsis or _is_plain(part) for part in typing.get_args(hint))
    return hint in (bool, int, float, str, type(None))


_UNION = r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: (.*)"


def tidy(error: Exception) -> str:
    """Return the message of a parser of jsonargparse in one line and in the words of this package."""
    return tidy_text(str(error)).removeprefix('Parser key "value": ')


def tidy_text(message: str) -> str:
    """Return what :func:`tidy` does of the text of an error."""
    text = " ".join(message.split())
    text = re.sub(_UNION, lambda found: f"expected {_words(found[1])}, got {found[2]}", text)
    text = re.sub(r"Expected an? <class '([\w.]+)'>", r"expected \1", text)
    text = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", text)
    return re.sub(r"\. Got value: ", ", got ", text)


def _words(names: str) -> str:
    """Return the types of a union, as jsonargparse lists them, in words."""
    names = re.sub(r"<class '([\w.]+)'>", r"\1", names)
    names = re.sub(r"\b(?:\w+\.)+(?=\w)", "", names).replace("NoneType", "none")
    return re.sub(r", (?=[^,\]]*$)", " or ", names)
