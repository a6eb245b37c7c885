"""The distributions that an API-only environment needs, derived from what the role imports.

`python -m tests.support.api_pins` writes them to `constraints-api.txt`, at the versions of `constraints.txt`.
"""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Container, Iterable, Mapping
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.repository import ROOT

PINS = ROOT / "constraints.txt"
API_PINS = ROOT / "constraints-api.txt"
OWN = ("service", "streams", "strategies")

HEAD = """\
# All that an API-only environment needs besides Holdfast itself: `holdfast serve api`, on SQLite and
# PostgreSQL, and the commands that call it. Derived from what the role imports, at the versions of
# constraints.txt, by:
#   python -m tests.support.api_pins
"""

# The role as it runs: the command, the app, its migrations, the server, and the plan of a declared gate.
ROLE = """
import asyncio, json, sys, tempfile
from pathlib import Path
import uvicorn
import service.cli, service.client, service.gate.simulation.declared
from service.api.app import create_app
from service.settings import Settings

async def start(app):
    async with app.router.lifespan_context(app):
        app.openapi()

asyncio.run(start(create_app(Settings(home=Path(tempfile.mkdtemp())))))
own = {name: module.__file__ for name, module in sys.modules.items()
       if name.split(".")[0] in ("service", "streams", "strategies") and getattr(module, "__file__", None)}
print(json.dumps({"own": own, "loaded": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def pinned() -> dict[str, str]:
    """Canonical name -> the line of `constraints.txt`."""
    lines = (line.strip() for line in PINS.read_text().splitlines())
    return {
        canonicalize_name(line.split("==")[0]): line for line in lines if line and not line.startswith("#")
    }


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, in functions too, but not for type checking alone."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def closure(roots: Iterable[str], *, left_out: Container[str] = ()) -> set[str]:
    """Canonical names of the distributions that requirements lead to, as installed here.

    Args:
        roots: requirements such as `ray==2.60.0`.
        left_out: canonical names whose own extras are not followed, as `.ci/install` leaves them out.

    Raises:
        PackageNotFoundError: a requirement is not installed.
    """
    waiting = [Requirement(root) for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        if canonicalize_name(requirement.name) in left_out:
            requirement.extras = set()
        step = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if step in seen:
            continue
        seen.add(step)
        for line in requires(requirement.name) or []:
            further = Requirement(line)
            extras = requirement.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    return {name for name, _ in seen}


def role_imports() -> set[str]:
    """The distributions that our modules in a running API import and have loaded.

    What a third party loads only because it happens to be installed is not among them.
    """
    done = subprocess.run([sys.executable, "-c", ROLE], capture_output=True, text=True, check=True, cwd=ROOT)
    found: Mapping[str, object] = json.loads(done.stdout)
    own, loaded = found["own"], found["loaded"]
    assert isinstance(own, dict)
    assert isinstance(loaded, list)
    names = {name for file in own.values() if file.endswith(".py") for name in imported(Path(file))}
    names = names.intersection(loaded).difference(OWN, ("holdfast_cl",))
    homes = packages_distributions()
    return {homes[name][0] for name in names}


def derived() -> str:
    """What `constraints-api.txt` must hold."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    postgres = project["optional-dependencies"]["postgres"]
    needed = closure([*role_imports(), *postgres])
    pins = pinned()
    return HEAD + "".join(f"{pins[name]}\n" for name in sorted(needed))


if __name__ == "__main__":
    API_PINS.write_text(derived())
