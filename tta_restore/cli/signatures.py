"""Read the signature and the argument documentation of a function without importing its module.

Help must not wait for torch. The source file is parsed, annotations are evaluated with the standard library's names
alone, and everything that is not one of them counts as ``Any``.
"""

from __future__ import annotations

import ast
import collections.abc
import importlib.util
import inspect
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["REQUIRED", "Function", "Parameter", "plain_text", "read_documentation", "read_function"]

REQUIRED: Any = object()
"""Default of a parameter that has none."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function.

    Attributes:
        name: in the signature.
        hint: evaluated annotation.
        default: value, or :data:`REQUIRED`.
        help: entry of the docstring's ``Args:``.
    """

    name: str
    hint: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Function:
    """Signature and documentation of a function.

    Attributes:
        summary: first sentence of the docstring.
        description: summary and explanation.
        parameters: by name, in order.
        open: whether the function takes further keywords.
    """

    summary: str
    description: str
    parameters: Mapping[str, Parameter]
    open: bool = False


class _Names(dict[str, Any]):
    """Names that annotations may use; an unknown one is ``Any``."""

    def __missing__(self, name: str) -> Any:
        return Any


def read_function(path: str) -> Function:
    """Return what ``module:function`` takes, read from the source of the module.

    Raises:
        LookupError: the module or the function does not exist.
    """
    module, _, name = path.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"read_function: there is no module {module}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    if found is None:
        raise LookupError(f"read_function: {module} has no function {name}")
    names = _names(tree)
    description, documented = _documentation(ast.get_docstring(found) or "")
    arguments = found.args
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [
        *zip(positional, [*missing, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    parameters = {
        argument.arg: Parameter(
            argument.arg,
            _evaluate(argument.annotation, names, Any),
            REQUIRED if default is None else _default(default, names),
            documented.get(argument.arg, ""),
        )
        for argument, default in pairs
    }
    summary = description.split("\n\n")[0].replace("\n", " ")
    return Function(summary, description, parameters, arguments.kwarg is not None)


def _names(tree: ast.Module) -> _Names:
    """Return the names of the standard library that a module imports, and its literal constants."""
    names = _Names(vars(typing) | vars(collections.abc))
    names |= {"Path": Path, "int": int, "float": float, "str": str, "bool": bool, "None": None}
    names |= {kind.__name__: kind for kind in (dict, list, tuple, set)}
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    try:
                        names[target.id] = ast.literal_eval(node.value)
                    except ValueError:
                        value = _evaluate(node.value, names, Any)  # an alias such as Literal["a", "b"]
                        if value is not Any and isinstance(node.value, (ast.Subscript, ast.BinOp)):
                            names[target.id] = value
    return names


def _default(node: ast.expr, names: _Names) -> Any:
    """Return the default value; None, which leaves it to the function, where it needs another module."""
    value = _evaluate(node, names, None)
    return None if value is Any else value


def _evaluate(node: ast.expr | None, names: _Names, otherwise: Any) -> Any:
    if node is None:
        return otherwise
    try:
        return eval(compile(ast.Expression(node), "<signature>", "eval"), {"__builtins__": {}}, names)
    except Exception:  # an annotation or default that needs more than the standard library
        return otherwise


def read_documentation(text: str) -> dict[str, str]:
    """Return the entries of ``Args:`` or ``Attributes:`` of a docstring."""
    return _documentation(inspect.cleandoc(text))[1]


def _documentation(text: str) -> tuple[str, dict[str, str]]:
    """Text before the first section, and the entries of ``Args:``, one line each."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line in ("Args:", "Attributes:")]
    ends = [i for i, line in enumerate(lines) if line.endswith(":") and line[:1].isupper() and " " not in line]
    description = "\n".join(lines[: min(ends, default=len(lines))]).strip()
    entries: dict[str, str] = {}
    for start in starts:
        name = ""
        for line in lines[start + 1 :]:
            if line and not line.startswith(" "):
                break
            own, colon, rest = line.strip().partition(":")
            if line.startswith("    ") and not line.startswith("     ") and colon and own.isidentifier():
                name, entries[own] = own, rest.strip()
            elif name and line.strip():
                entries[name] += " " + line.strip()
    return plain_text(description), {name: plain_text(entry) for name, entry in entries.items()}


def plain_text(text: str) -> str:
    """Return a text without markup: of a cross-reference to ``a.b.c`` the name ``c`` remains."""
    text = re.sub(r":\w+:`~?([^`<]*?)([^`.<]*)`", r"\2", text)
    return text.replace("``", "").replace("`", "")
