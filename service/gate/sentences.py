"""Formatting of numbers in findings. A loss is a share; a point is 0.01."""

from collections.abc import Sequence
from functools import lru_cache


def points(share: float, *, digits: int = 1) -> str:
    """A share as points without a unit, no trailing zeros: 0.05 is "5", 0.0078 is "0.8"."""
    if digits == 1 and -1 <= share <= 1:
        return _tenths(round(1000 * share))
    text = f"{100 * share:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if digits else text
    return "0" if text == "-0" else text


@lru_cache(maxsize=2048)
def _tenths(number: int) -> str:
    """Cached: formatting takes longer than the statistics of a comparison, and few numbers occur."""
    return f"{number / 10:.1f}".removesuffix(".0")


def with_unit(share: float, *, digits: int = 1) -> str:
    """The same with its unit: "1 point", "0.8 points"."""
    return _unit(points(share, digits=digits))


def held_to(margin: float | None) -> str:
    """What a golden set is held to: "margin 3 points"; None: no right answer may be lost."""
    return "no right answer may be lost" if margin is None else f"margin {with_unit(margin, digits=2)}"


def _unit(number: str) -> str:
    return f"{number} point" if number == "1" else f"{number} points"


@lru_cache(maxsize=4096)
def allowed(margin: float) -> str:
    """A margin to the hundredth of a point, so that nothing is rounded past it: "1.25"."""
    return points(margin, digits=2)


def apart(value: float, limit: float) -> str:
    """A number of any size, with as few decimals (at least two) as distinguish it from its limit."""
    for digits in (2, 4, 6):
        text = f"{value:.{digits}f}"
        if float(text) != limit or value == limit:
            return text
    return repr(value)


def percent(share: float) -> str:
    """A share as a percentage: "62 %"; small ones keep a digit, "0.4 %"."""
    return f"{points(share, digits=0 if share == 0 or share >= 0.0095 else 1)} %"


@lru_cache(maxsize=4096)
def percent_of(share: float) -> str:
    """A small share as a percentage with its digits: "2.13 %", "0.4 %"."""
    return f"{points(share, digits=2)} %"


def share(value: float, limit: float | None = None) -> str:
    """A score that is no percentage: "0.0052"; with as few digits as distinguish it from the limit."""
    for digits in (4, 5, 6):
        text = f"{value:.{digits}f}"
        if limit is None or text != f"{limit:.{digits}f}":
            break
    return text.rstrip("0").rstrip(".") or "0"


def records(count: int, kind: str = "") -> str:
    """A number of records: "1 record", "43 holdout records"."""
    return f"{count} {kind + ' ' if kind else ''}{'record' if count == 1 else 'records'}"


def about(count: int) -> str:
    """A planned number, to two figures: 227 is "about 230"."""
    magnitude = 10 ** max(len(str(count)) - 2, 0)
    return f"about {round(count / magnitude) * magnitude}"


def listed(items: Sequence[int]) -> str:
    """Rising numbers as a person lists them: "4", "4 and 5", "4 to 9", "1, 3 and 8"."""
    numbers = [str(item) for item in items]
    if len(items) > 2 and items[-1] - items[0] == len(items) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return " and ".join([", ".join(numbers[:-1]), numbers[-1]]) if len(numbers) > 1 else "".join(numbers)


def experiences(items: Sequence[int]) -> str:
    """Experiences by number: "experience 4", "experiences 4 and 5"."""
    return f"experience {items[0]}" if len(items) == 1 else f"experiences {listed(items)}"


def distinct_points(share: float, margin: float) -> str:
    """A share in points, with as few digits as distinguish it from the margin: "5.003"."""
    for digits in (1, 2, 3, 4):
        text = points(share, digits=digits)
        if text != points(margin, digits=digits):
            return text
    return points(share, digits=2)


def points_of(share: float, margin: float) -> str:
    """The same with its unit."""
    return _unit(distinct_points(share, margin))


@lru_cache(maxsize=4096)
def at_worst(upper: float, margin: float) -> str:
    """The upper limit of a loss that passed, never rounded up to the margin itself when a digit can tell."""
    worst = distinct_points(upper, margin)
    return "at worst nothing lost" if worst == "0" else f"at worst {_unit(worst)} lost"


def between(lower: float, upper: float, margin: float) -> str:
    """A proven loss, from its limits: "between 3.1 and 7.8 points", "about 7.8 points", "up to 2 points"."""
    least, most = points(lower), distinct_points(upper, margin)
    if least == most:
        return f"about {_unit(most)}"
    if lower <= 0 or least == "0":
        return f"up to {_unit(most)}"
    return f"between {least} and {_unit(most)}"


def up_to(upper: float, margin: float) -> str:
    """The upper limit of an unproven loss: "up to 6.1 points"; never rounded down to the margin."""
    return f"up to {points_of(upper, margin)}"


@lru_cache(maxsize=4096)
def were_allowed(margin: float) -> str:
    """A margin that was exceeded: "2 were allowed", "1 was allowed"."""
    number = allowed(margin)
    return f"{number} {'was' if number == '1' else 'were'} allowed"


def flips(n: int, lost: int, gained: int) -> str:
    """What a comparison rests on: "600 records, 12 got worse, 15 got better"."""
    return f"{records(n)}, {lost} got worse, {gained} got better"
