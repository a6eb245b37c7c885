"""Start of the command `holdfast`: checks that the packages it is about to import are Holdfast's own.

`service`, `streams` and `strategies` are ordinary words. A folder on PYTHONPATH, the current folder or
another distribution may hold a package of the same name, and then Holdfast would run half of one and half
of the other. This module has a name of its own, so it can say so even where `service.cli` is not to be
found. It needs the standard library alone.
"""

import importlib.machinery
import importlib.util
import re
import sys
from pathlib import Path

DISTRIBUTION = "holdfast-cl"
PACKAGES = ("service", "streams", "strategies")

_HERE = Path(__file__).resolve().parent
"""The folder that holds this module holds the packages too, in a checkout as in an installation."""


def main() -> None:
    """Run the command, or refuse in one sentence where a package is not Holdfast's own."""
    refusal = shadowed()
    if refusal is not None:
        print(f"holdfast: {refusal}", file=sys.stderr)
        sys.exit(1)
    from service.cli import main as command

    command()


def shadowed(folder: Path | None = None) -> str | None:
    """Why a package is not Holdfast's own, and what to do, as one sentence; None where all are.

    Args:
        folder: look into this folder alone, for a process that will search it first; default: what this
            process imports.
    """
    for name in PACKAGES:
        if folder is None:
            spec = importlib.util.find_spec(name)
        else:
            spec = importlib.machinery.PathFinder.find_spec(name, [str(folder)])
        own = _HERE / name / "__init__.py"
        if spec is None or spec.origin is None:
            # Nothing of that name, or a folder without code, to which Python prefers a real package.
            if folder is None:
                return f"Holdfast's package {name} is missing from {_HERE}: install {DISTRIBUTION} again."
        elif Path(spec.origin).resolve() != own:
            return (
                f"{spec.origin} would be imported in place of Holdfast's own package {name} ({own.parent}): "
                "take it off PYTHONPATH, rename it, or start Holdfast from another folder."
            )
    return None


def overwritten() -> str | None:
    """Which other distribution installed files into a package of Holdfast's, as one sentence; None: none.

    Reads the file lists of all that is installed: a few hundredths of a second.
    """
    from importlib.metadata import distributions

    ours = re.compile(rf"^({'|'.join(PACKAGES)})/", re.MULTILINE)
    for distribution in distributions(path=[str(_HERE)]):
        name = distribution.metadata["Name"]
        if re.sub(r"[-_.]+", "-", name).lower() == DISTRIBUTION:
            continue
        found = ours.search(distribution.read_text("RECORD") or "")
        if found is not None:
            return (
                f"The distribution {name} installed files into Holdfast's package {found[1]}: uninstall it, "
                f"then install {DISTRIBUTION} again, in an environment of its own."
            )
    return None


if __name__ == "__main__":
    main()
