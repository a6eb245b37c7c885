"""Finds the imports and the SQL of a source tree that cross a wall between modules.

Imports are read from the syntax tree: statements anywhere in a module, relative ones too, and names in
strings that load code: `import_module("a.b")` under any name, also with an f-string, and "a.b:function". A
call whose module cannot be read is a crossing itself. Blocks under TYPE_CHECKING are left out.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGES = ("streams", "strategies", "service")
_BUILDER = re.compile(r"[a-z_]\w*(?:\.\w+)+:\w+")
_LOADERS = {"import_module", "__import__", "resolve_name", "run_module"}
_SQL_NAMES = {"select", "insert", "update", "delete", "text", "exists", "union", "union_all"}
_DATABASES = ("sqlalchemy", "sqlite3", "psycopg")
_SQL_METHODS = {"execute", "scalar", "scalars", "exec_driver_sql", "executemany"}


@dataclass(frozen=True)
class Floor:
    """Rooms side by side. They may import every floor below and, as strangers, not each other."""

    rooms: tuple[str, ...]
    """Dotted names of modules or of whole packages."""
    why: str
    """Why the wall around these rooms stands; part of each failure."""


@dataclass(frozen=True)
class Limit:
    """A room that may import less than the floors below it."""

    room: str
    may_import: tuple[str, ...]
    """Dotted names of our own modules or packages, the room itself included."""
    why: str


@dataclass(frozen=True)
class Home:
    """The only places that may import a heavy library."""

    places: tuple[str, ...]
    """Dotted names of modules or packages, matched whole: `a.b` is not the home of `a.bc`."""
    why: str


@dataclass(frozen=True)
class Crossing:
    """One import, or one statement, that crosses a wall."""

    module: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.module} {self.what}. Why the wall stands: {self.why}"


def within(name: str, place: str) -> bool:
    """Whether a dotted name is a place or stands in it."""
    return name == place or name.startswith(f"{place}.")


@dataclass
class Tree:
    """The modules of a source tree and what they import."""

    root: Path
    _trees: dict[str, ast.Module] = field(default_factory=dict)
    _imports: dict[str, frozenset[str]] = field(default_factory=dict)
    _own: dict[str, frozenset[str]] = field(default_factory=dict)
    _unreadable: dict[str, list[int]] = field(default_factory=dict)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Every module of the three packages; an `__init__` is not one, since it is only a docstring."""
        paths = [path for package in PACKAGES for path in (self.root / package).rglob("*.py")]
        parts = [path.relative_to(self.root).with_suffix("").parts for path in paths]
        return tuple(sorted(".".join(each) for each in parts if each[-1] != "__init__"))

    def path(self, module: str) -> Path:
        return self.root.joinpath(*module.split(".")).with_suffix(".py")

    def syntax(self, module: str) -> ast.Module:
        if module not in self._trees:
            self._trees[module] = ast.parse(self.path(module).read_text())
        return self._trees[module]

    def imports(self, module: str) -> frozenset[str]:
        """Dotted names that a module imports, by statements and by strings."""
        if module not in self._imports:
            self._unreadable[module] = []
            self._imports[module] = frozenset(self._statements(module)) | frozenset(self._strings(module))
        return self._imports[module]

    def unreadable_imports(self, module: str) -> list[int]:
        """Lines of calls that load a module whose name the text does not say."""
        self.imports(module)
        return self._unreadable[module]

    def own_imports(self, module: str) -> frozenset[str]:
        """Modules of this tree that a module imports."""
        if module not in self._own:
            self._own[module] = self.imports(module) & frozenset(self.modules)
        return self._own[module]

    @cached_property
    def packages(self) -> frozenset[str]:
        """Packages of this tree below the three."""
        return frozenset(
            module.rsplit(".", level)[0] for module in self.modules for level in range(1, module.count("."))
        )

    def own_names(self, module: str) -> frozenset[str]:
        """Modules of this tree that a module imports, and packages of which it names no module."""
        modules = self.own_imports(module)
        whole = self.imports(module) & self.packages
        return modules | {name for name in whole if not any(within(each, name) for each in modules)}

    def _statements(self, module: str) -> Iterator[str]:
        tree = self.syntax(module)
        skipped = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for statement in block.body
            for node in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                package = module.rsplit(".", node.level)[0] if node.level else ""
                start = ".".join(part for part in (package, node.module) if part)
                yield start
                yield from (f"{start}.{alias.name}" for alias in node.names)

    def _strings(self, module: str) -> Iterator[str]:
        tree = self.syntax(module)
        loaders = _LOADERS | {
            alias.asname
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if alias.name in _LOADERS and alias.asname
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if _BUILDER.fullmatch(node.value):
                    yield node.value.partition(":")[0]
            elif isinstance(node, ast.Call) and _called(node) in loaders:
                yield from self._loaded(module, node)

    def _loaded(self, module: str, call: ast.Call) -> Iterator[str]:
        """Modules that a call of `import_module` can load; notes a name that the text does not say."""
        name = next(iter((*call.args, *(each.value for each in call.keywords))), None)
        start = _beginning(name)
        if not start or start.startswith("."):
            self._unreadable[module].append(call.lineno)
        elif isinstance(name, ast.Constant):
            yield start.partition(":")[0]
        else:
            yield from (each for each in self.modules if each.startswith(start))

    def cycles(self) -> list[list[str]]:
        """Groups of modules that import each other in a ring, strings counted."""
        reached = {module: self._reached(module) for module in self.modules}
        rings = {
            tuple(sorted(other for other in reached[module] if module in reached[other]))
            for module in self.modules
            if module in reached[module]
        }
        return [list(ring) for ring in sorted(rings)]

    def _reached(self, module: str) -> set[str]:
        found: set[str] = set()
        waiting = list(self.own_imports(module))
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.own_imports(name)
        return found


def _beginning(name: ast.expr | None) -> str:
    """The text that a string expression begins with, as far as it is written out."""
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return name.value
    if isinstance(name, ast.JoinedStr) and name.values:
        return _beginning(name.values[0])
    if isinstance(name, ast.BinOp) and isinstance(name.op, ast.Add):
        return _beginning(name.left)
    return ""


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def room_of(module: str, floors: Sequence[Floor]) -> tuple[int, str]:
    """The floor and the room of a module; the longest name that fits wins. Raises LookupError without one."""
    fitting = [
        (len(room), level, room)
        for level, floor in enumerate(floors)
        for room in floor.rooms
        if within(module, room)
    ]
    if not fitting:
        raise LookupError(f"{module} stands in no room: give it one in FLOORS")
    _, level, room = max(fitting)
    return level, room


def across_rooms(tree: Tree, floors: Sequence[Floor]) -> list[Crossing]:
    """Imports that go up a floor, or to a stranger on the same floor."""
    found = []
    for module in tree.modules:
        level, room = room_of(module, floors)
        for name in sorted(tree.own_names(module)):
            other_level, other = room_of(name, floors)
            if other == room or other_level < level:
                continue
            kind = "a stranger" if other_level == level else "above it"
            found.append(
                Crossing(module, f"imports {name}; {room} may not know {other}, {kind}", floors[level].why)
            )
    return found


def against_ranks(tree: Tree, ranks: Mapping[str, str], floors: Sequence[Floor]) -> list[Crossing]:
    """Imports inside a room of what stands later in the room's list, lowest first."""
    found = []
    for module in tree.modules:
        _, room = room_of(module, floors)
        if module == room:
            continue
        order = [f"{room}.{name}" for name in ranks[room].split()]
        for name in sorted(tree.own_imports(module) & set(order)):
            if order.index(name) >= order.index(module):
                why = f"inside {room} imports run downhill, so that it can be read from its lowest module up"
                found.append(Crossing(module, f"imports {name}, which ranks above it", why))
    return found


def beyond_limits(tree: Tree, limits: Iterable[Limit]) -> list[Crossing]:
    """Imports of our own modules that a limited room may not have."""
    return [
        Crossing(
            module, f"imports {name}; {limit.room} may import only {', '.join(limit.may_import)}", limit.why
        )
        for limit in limits
        for module in tree.modules
        if within(module, limit.room)
        for name in sorted(tree.own_names(module))
        if not any(within(name, place) for place in limit.may_import)
    ]


def unreadable(tree: Tree, allowed: Iterable[str]) -> list[Crossing]:
    """Calls outside the `allowed` modules that load a module whose name no reader of the text can see."""
    return [
        Crossing(
            module,
            f"loads a module in line {line} whose name is not written there",
            "a name that only a run knows can cross every wall unseen",
        )
        for module in tree.modules
        if module not in set(allowed)
        for line in tree.unreadable_imports(module)
    ]


def nowhere(tree: Tree, names: Iterable[str]) -> list[str]:
    """Names that are neither a module nor a package of the tree, so that a rule about them tests nothing."""
    known = {*tree.modules, *tree.packages, *PACKAGES}
    return sorted(set(names) - known)


def outside_homes(tree: Tree, homes: Mapping[str, Home]) -> list[Crossing]:
    """Imports of a heavy library outside its home."""
    return [
        Crossing(module, f"imports {library}, whose home is {', '.join(home.places)}", home.why)
        for library, home in homes.items()
        for module in tree.modules
        if any(within(name, library) for name in tree.imports(module))
        and not any(within(module, place) for place in home.places)
    ]


def sql_outside(tree: Tree, homes: Sequence[str], *, why: str) -> list[Crossing]:
    """SQL statements, made or run, outside the rooms of rows."""
    return [
        Crossing(module, f"has SQL in line {line} ({what}); SQL stands only in {', '.join(homes)}", why)
        for module in tree.modules
        if not any(within(module, home) for home in homes)
        for line, what in _sql(tree.syntax(module), tree.imports(module), homes)
    ]


def _sql(tree: ast.Module, imports: frozenset[str], homes: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Line and text of each SQL statement, in a module that knows SQLAlchemy, a driver, or rooms of rows."""
    if not any(within(name, library) for name in imports for library in (*_DATABASES, *homes)):
        return
    aliases = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if within(alias.name if isinstance(node, ast.Import) else node.module or "", "sqlalchemy")
    }
    named = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and within(node.module, "sqlalchemy")
        for alias in node.names
        if alias.name in _SQL_NAMES
    }
    # Names from a module of rows may be tables; a module of rows itself has functions, and tables one dot on.
    rows, tables = (
        {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(start)
            for alias in node.names
            if (node.module in homes) == whole
        }
        for start, whole in ((tuple(homes), True), (tuple(f"{home}." for home in homes), False))
    )
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute):
            owner = ast.unparse(called.value)
            root, dot, _ = owner.partition(".")
            of_sqlalchemy = root in aliases or owner in tables or (dot and root in rows)
            if called.attr in _SQL_METHODS or (of_sqlalchemy and called.attr in _SQL_NAMES):
                yield node.lineno, ast.unparse(called)
        elif isinstance(called, ast.Name) and called.id in named:
            yield node.lineno, called.id


def crowded(tree: Tree, *, modules: int, same_prefix: int) -> list[str]:
    """Folders with too many modules, or with too many that share the word before their first underscore."""
    found = []
    folders: dict[str, list[str]] = {}
    for module in tree.modules:
        folder, _, name = module.rpartition(".")
        folders.setdefault(folder, []).append(name)
    for folder, names in sorted(folders.items()):
        if len(names) > modules:
            found.append(f"{folder} holds {len(names)} modules; more than {modules} want sub-packages")
        families: dict[str, list[str]] = {}
        for name in names:
            families.setdefault(name.partition("_")[0], []).append(name)
        for prefix, family in sorted(families.items()):
            if len(family) > same_prefix and any("_" in name for name in family):
                found.append(
                    f"{folder} holds {family}: files that share {prefix!r} want a folder of their own"
                )
    return found


def too_long(tree: Tree, *, lines: int, function_lines: int) -> list[str]:
    """Files and functions that are longer than one thing usually is."""
    found = []
    for module in tree.modules:
        length = len(tree.path(module).read_text().splitlines())
        if length > lines:
            found.append(f"{module} has {length} lines, more than {lines}: is it two things?")
        for node in ast.walk(tree.syntax(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > function_lines:
                    found.append(f"{module}.{node.name} has {size} lines, more than {function_lines}")
    return found
