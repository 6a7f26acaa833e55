"""Inventory of the public API, read from the sources; `python tests/_public_api.py` writes it to public_api.txt."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).parent / "public_api.txt"
COMMAND = "python tests/_public_api.py"
LONGEST_VALUE = 160  # characters of a constant that are listed; longer ones are "..."
KEPT_METHODS = {"__init__", "__call__", "__iter__", "__len__", "__getitem__", "__enter__", "__exit__"}


class Sources:
    """Modules of a package, parsed and not imported.

    Args:
        folder: folder of the package, which gives the package its name.
    """

    def __init__(self, folder):
        self.trees, self.packages = {}, set()
        for path in sorted(folder.rglob("*.py")):
            parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
            name = ".".join(parts).removesuffix(".__init__")
            self.trees[name] = ast.parse(path.read_text(encoding="utf-8"))
            if path.name == "__init__.py":
                self.packages.add(name)

    def statements(self, module):
        """Yield the top-level statements of a module, also those in ``if`` and ``try``."""
        pending = list(self.trees[module].body)
        while pending:
            statement = pending.pop(0)
            yield statement
            for part in ("body", "orelse", "handlers", "finalbody"):
                if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                    pending += getattr(statement, part, [])

    def assigned(self, module, name):
        """Return the last assignment to a name of a module, or None."""
        found = None
        for node in self.statements(module):
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(leaf, ast.Name) and leaf.id == name for t in targets for leaf in ast.walk(t)):
                    found = node
        return found

    def exported(self, module):
        """Return the names in ``__all__``, none for a module without, each with the module that it is taken from."""
        node = self.assigned(module, "__all__")
        if node is None:
            return {}
        if ast.unparse(node.value) == "[*_MODULES]":  # names that are imported when they are first used
            lazy = ast.literal_eval(self.assigned(module, "_MODULES").value)
            return {name: f"{module}.{origin}" for name, origin in lazy.items()}
        return dict.fromkeys(ast.literal_eval(node.value), module)

    def find(self, module, name):
        """Return the module and the definition behind a name, following imports; None for another package's."""
        for node in self.statements(module):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
                return module, node
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        return self._follow(self._origin(module, node), alias.name)
        node = self.assigned(module, name)
        if node is None and f"{module}.{name}" in self.trees:
            return f"{module}.{name}", None
        if node is None and not self._is_lazy(module, name):
            raise LookupError(f"{module}.__all__ has {name!r}, which the module does not define")
        return module, node

    def _is_lazy(self, module, name):
        """Return whether a module's ``__getattr__`` names it."""
        found = next((n for n in self.trees[module].body if getattr(n, "name", "") == "__getattr__"), ast.Pass())
        return any(isinstance(leaf, ast.Constant) and leaf.value == name for leaf in ast.walk(found))

    def _origin(self, module, node):
        if not node.level:
            return node.module
        parts = module.split(".")
        kept = len(parts) - node.level + (module in self.packages)
        return ".".join(parts[:kept] + ([node.module] if node.module else []))

    def _follow(self, module, name):
        if f"{module}.{name}" in self.trees:
            return f"{module}.{name}", None
        return self.find(module, name) if module in self.trees else None


def inventory(folder=ROOT / "tta_restore"):
    """Return the public names of a package with their signatures, as text; private are names that start with "_"."""
    sources = Sources(folder)
    listed = {name: sources.exported(name) for name in sources.trees if "._" not in name}
    homes = {(module, name) for module, names in listed.items() for name, origin in names.items() if origin == module}
    lines = []
    for module, names in sorted(listed.items()):
        if not names:
            continue
        lines += ["", module]
        for name, origin in sorted(names.items()):
            found = sources.find(origin, name)
            if found is None:
                lines.append(f"  {name}: of another package")
                continue
            home, node = found
            if home != module and (node is None or (home, name) in homes):
                lines.append(f"  {name}: {home}")
            else:
                lines += [f"  {line}" for line in _described(sources, home, name, node, homes)]
    return "\n".join(lines[1:]) + "\n"


def _described(sources, module, name, node, homes):
    if isinstance(node, ast.FunctionDef):
        return _functions(name, list(sources.statements(module)))
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, [*node.bases, *(k.value for k in node.keywords)]))
        return [
            f"class {name}({bases})" if bases else f"class {name}",
            *(f"  {line}" for line in _members(sources, module, node, homes).values()),
        ]
    if node is None:
        return [f"{name}: loaded when it is first used"]
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
        names = [ast.unparse(target) for target in node.targets[0].elts]
        value = ast.unparse(dict(zip(names, getattr(node.value, "elts", ()), strict=False)).get(name, node.value))
    else:
        value = "..." if node.value is None else ast.unparse(node.value)
    hint = f": {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
    return [f"{name}{hint} = {value if len(value) <= LONGEST_VALUE else '...'}"]


def _members(sources, module, node, homes):
    """Return one line per public attribute and method, those of private base classes included."""
    members = {}
    for base in node.bases:
        found = (
            sources.find(module, base.id) if isinstance(base, ast.Name) and _is_known(sources, module, base) else None
        )
        if found and isinstance(found[1], ast.ClassDef) and (found[0], found[1].name) not in homes:
            members |= _members(sources, *found, homes)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and (not part.name.startswith("_") or part.name in KEPT_METHODS):
            members[part.name] = "; ".join(_functions(part.name, node.body))
        elif isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
            value = "" if part.value is None else f" = {ast.unparse(part.value)}"
            members[ast.unparse(part.target)] = f"{ast.unparse(part.target)}: {ast.unparse(part.annotation)}{value}"
        elif isinstance(part, ast.Assign):
            names = [target.id for target in part.targets if isinstance(target, ast.Name)]
            members |= {name: f"{name} = {ast.unparse(part.value)}" for name in names if not name.startswith("_")}
    return members


def _is_known(sources, module, base):
    try:
        sources.find(module, base.id)
    except LookupError:  # a built-in class, or a module's attribute
        return False
    return True


def _functions(name, statements):
    """Return a line for a function, or one for each of its overloads."""
    lines = []
    for node in statements:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            marks = "".join(f"@{ast.unparse(mark)} " for mark in node.decorator_list)
            lines.append(f"{marks}{name}({ast.unparse(node.args)}){result}")
    return lines


if __name__ == "__main__":
    LIST.write_text(inventory(), encoding="utf-8")
