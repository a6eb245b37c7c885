"""Check that a release tag, the version, the changelog and the built files say the same.

`python .ci/check_release.py v1.2.3 dist`, in the repository's root. Exit status: 0 they do; 1 they do not,
and each difference is a line on standard error; 2 wrong usage. Only the standard library is needed.
"""

import re
import sys
import tomllib
from pathlib import Path

NAME = "holdfast-cl"
"""The distribution. The command is `holdfast`; that name on the package index is another project's."""


def differences(tag: str, dist: Path) -> list[str]:
    """What does not fit, each with what to do about it."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    found = []
    if name != NAME:
        found.append(f"pyproject.toml names the distribution {name!r}: it is released as {NAME!r}.")
    if tag != f"v{version}":
        found.append(f"The tag is {tag!r}, and pyproject.toml has version {version!r}: tag v{version}.")
    changelog = Path("CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$", changelog, flags=re.M):
        found.append(
            f"CHANGELOG.md has no line '## [{version}] - YYYY-MM-DD': move what is under Unreleased there."
        )
    stem = f"{NAME.replace('-', '_')}-{version}"
    wanted, built = {f"{stem}-py3-none-any.whl", f"{stem}.tar.gz"}, {file.name for file in dist.glob("*")}
    if built != wanted:
        found.append(
            f"{dist} holds {sorted(built)} instead of {sorted(wanted)}: "
            "empty it, and run python -m build again."
        )
    return found


def main(arguments: list[str]) -> int:
    """Print every difference; the exit status."""
    if len(arguments) != 2:
        print("usage: python .ci/check_release.py TAG DIST", file=sys.stderr)
        return 2
    found = differences(arguments[0], Path(arguments[1]))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
