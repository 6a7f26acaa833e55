"""Sphinx extension: a page for every public module, function and class, written before each build.

A module is public if it defines `__all__` and no part of its path starts with an underscore. A name has one page, under
the shortest path that exports it. The pages are files in docs/api/reference, which git ignores.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import signature as sphinx_signature
from sphinx.util.inspect import stringify_signature
from sphinx.util.nodes import make_refnode

import tta_restore

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

_FOLDER = "api/reference"
_ROOT = "tta_restore"
_PATHS: dict[int, str] = {}  # of documented objects, by identity
_KINDS = {"function": "Functions", "class": "Classes", "data": "Values"}


def open_modules() -> dict[str, ModuleType]:
    """Return the modules without an underscore in their path, those nearest to the root first."""
    names = [_ROOT, *(found.name for found in pkgutil.walk_packages(tta_restore.__path__, f"{_ROOT}."))]
    open_names = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    return {name: importlib.import_module(name) for name in sorted(open_names, key=lambda n: (n.count("."), n))}


def documented_names(modules: dict[str, ModuleType]) -> dict[str, list[str]]:
    """Return the names that each module documents: those in its `__all__` that no shorter path exports."""
    taken: set[tuple[str, int]] = set()
    found: dict[str, list[str]] = {}
    for path, module in modules.items():
        for name in sorted(getattr(module, "__all__", ()), key=str.lower):
            value = getattr(module, name)
            is_ours = getattr(value, "__module__", _ROOT).partition(".")[0] == _ROOT
            if is_ours and not isinstance(value, ModuleType) and (name, id(value)) not in taken:
                taken.add((name, id(value)))
                found.setdefault(path, []).append(name)
    return found


def kind_of(value: Any) -> str:
    """Return "class", "function" or "data"."""
    return "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"


def module_page(path: str, module: ModuleType, names: list[str], children: list[str]) -> str:
    """Return the page of a module: its docstring, tables of its names, and a menu of the modules in it."""
    title = path.removeprefix(f"{_ROOT}.")
    lines = [title, "=" * len(title), "", f".. automodule:: {path}", "   :no-members:", ""]
    for kind, heading in _KINDS.items():
        chosen = [f"{path}.{name}" for name in names if kind_of(getattr(module, name)) == kind]
        if chosen and kind == "data":
            lines += [heading, "-" * len(heading), ""]
            for name in chosen:
                lines += value_entry(path, name.removeprefix(f"{path}."))
        elif chosen:
            lines += [heading, "-" * len(heading), "", ".. autosummary::", "   :nosignatures:", ""]
            lines += [*(f"   ~{name}" for name in chosen), ""]
    if children:
        lines += ["Modules", "-------", "", ".. autosummary::", "   :nosignatures:", ""]
        lines += [*(f"   {child}" for child in children), "", ".. toctree::", "   :hidden:", ""]
        lines += [f"   {child.removeprefix(f'{_ROOT}.')} <{child}>" for child in children]
    return "\n".join(lines) + "\n"


def value_entry(path: str, name: str) -> list[str]:
    """Return the description of a constant or a type: the comment above it (`#:`), word for word."""
    notes = ModuleAnalyzer.for_module(path).find_attr_docs()
    return [f".. py:data:: {path}.{name}", "", *(f"   {line}" for line in notes.get(("", name), [])), ""]


def name_page(path: str, name: str, value: Any) -> str:
    """Return the page of a function or a class. It is in no menu: the page of its module lists it."""
    kind = kind_of(value)
    lines = [":orphan:", "", name, "=" * len(name), "", f"In :doc:`{path} <{path}>`.", ""]
    lines += [f".. auto{kind}:: {path}.{name}"]
    if kind == "class":
        lines += ["   :members:", "   :show-inheritance:"]
    lines += ["", f".. minigallery:: {path}.{name}", "   :add-heading: Examples"]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Return the text of every page by its name."""
    modules = open_modules()
    names = documented_names(modules)
    shown = {path for path in modules if any(f"{other}.".startswith(f"{path}.") for other in names)}
    found: dict[str, str] = {}
    for path in shown:
        children = sorted(child for child in shown if child.rpartition(".")[0] == path)
        own = names.get(path, [])
        found[path] = module_page(path, modules[path], own, [] if path == _ROOT else children)
        for name in own:
            _PATHS[id(getattr(modules[path], name))] = f"{path}.{name}"
            if kind_of(getattr(modules[path], name)) != "data":
                found[f"{path}.{name}"] = name_page(path, name, getattr(modules[path], name))
    return found


def write_pages(app: Sphinx) -> None:
    """Write the pages that changed, and remove those of names that are gone."""
    folder = Path(app.srcdir) / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    texts = pages()
    for page in folder.glob("*.rst"):
        if page.stem not in texts:
            page.unlink()
    for name, text in texts.items():
        target = folder / f"{name}.rst"
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")


def resolve_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """Resolve a reference to a name by the module in which it was written.

    A name that has a page elsewhere, such as that of the package that exports it, leads there. A private one that
    exists is text without a link. Everything else is left to sphinx, which warns.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    objects = env.get_domain("py").objects  # type: ignore[attr-defined]
    value, path = _find(target, node.get("py:module"), node.get("py:class"))
    if value is None:
        return None
    origin = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    for name in (path, origin, _PATHS.get(id(value), "")):
        if name in objects:
            entry = objects[name]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)
    return content


def _find(target: str, module: str | None, cls: str | None) -> tuple[Any, str]:
    """Return the object that a reference means, and its path; None where there is none, or more than one."""
    for path in (f"{module}.{cls}.{target}", f"{module}.{target}", target):
        value = _at(path)
        if value is not None:
            return value, path
    # A docstring is shown in the module that exports it, and names what its own module holds.
    values = {path: _at(f"{path}.{target}") for path in sys.modules if path.partition(".")[0] == _ROOT}
    found = {id(value): (value, f"{path}.{target}") for path, value in values.items() if value is not None}
    return next(iter(found.values())) if len(found) == 1 else (None, "")


def _at(path: str) -> Any:
    """Return the object at a path of the package, or None."""
    parts = path.split(".")
    end = next((end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in sys.modules), 0)
    value = sys.modules[".".join(parts[:end])] if end and parts[0] == _ROOT else None
    for part in parts[end:]:
        fallback = part if inspect.isclass(value) and f"self.{part}" in inspect.getsource(value) else None
        fields = getattr(value, "__dataclass_fields__", {}) | getattr(value, "__annotations__", {})
        value = getattr(value, part, fields.get(part, fallback))
    return value


def drop_back_links(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Remove the links from a source file to the page of a name: viewcode gets those of names with two paths wrong."""
    if page.startswith("_modules/") and "body" in context:
        context["body"] = re.sub(r'<a class="viewcode-back" href="[^"]*">\[docs\]</a>', "", context["body"])


def class_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Return the signature of a class's constructor where ``__new__``, which takes anything, stands in for it."""
    if what == "class" and (signature or "").startswith("(*arguments"):
        found = sphinx_signature(obj.__init__, bound_method=True)
        return stringify_signature(found, show_return_annotation=False, unqualified_typehints=True), returned
    return signature, returned


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("builder-inited", write_pages)
    app.connect("html-page-context", drop_back_links)
    app.connect("missing-reference", resolve_name)
    app.connect("autodoc-process-signature", class_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
