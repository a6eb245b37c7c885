"""`make bench AREA=...`: runs one area and prints its numbers; the last line is one JSON object."""

import sys
from importlib import import_module

from tests.bench.measure import report

AREAS = ("loop", "streams", "strategies", "references", "gate", "faults", "gpu")


def main() -> None:
    area = sys.argv[1] if len(sys.argv) > 1 else ""
    if area not in AREAS:
        sys.exit(f"There is no area {area!r}; choose one of: {', '.join(AREAS)}.")
    report(area, import_module(f"tests.bench.bench_{area}").run())


if __name__ == "__main__":
    main()
