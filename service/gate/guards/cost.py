"""Cost guards: overfitting, latency, size of the served network, and time to learn."""

from collections.abc import Callable
from math import inf, isfinite

import numpy as np

from service.gate import measures, stats
from service.gate import sentences as say
from service.gate.base import Evidence, Finding, GateConfig, Running

_FEWEST = 30
"""Fewest holdout records: Newcombe's limits are approximate, and too narrow for fewer."""


def running(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Judges overfitting and costs that have a limit; always reports the gap between training and holdout."""
    measured = evidence.running or Running()
    found = _gap(evidence, measured, config)
    asked: tuple[tuple[float | None, Callable[[Running, float, GateConfig], Finding], bool], ...] = (
        (config.latency_ratio, _latency, True),
        (config.size_ratio, _size, True),
        (config.update_seconds, _seconds, False),
    )
    for limit, ask, compares in asked:
        if limit is not None and not (compares and evidence.first):
            found += (ask(measured, limit, config),)
    return found


def _gap(evidence: Evidence, measured: Running, config: GateConfig) -> tuple[Finding, ...]:
    """Training accuracy minus accuracy on the new holdouts: its lower limit must not exceed what is allowed.

    The two are of different records, so the limit is Newcombe's for independent shares.
    """
    limit = config.train_gap
    held = [bits for each in evidence.new if (bits := each.challenger) is not None and bits.dtype == np.bool_]
    n, right = sum(map(len, held)), int(sum(bits.sum() for bits in held))
    train, train_n = measured.train_right, measured.train_records
    counted = train is not None and 0 <= train <= train_n and 0 < train_n < inf
    whole = len(held) == len(evidence.new) and n > 0 and counted
    if not whole or train is None:
        if limit is None:
            return ()
        missing = "train gap: training and holdout answers are not all there; run the update again"
        return (Finding("train_gap", "undecided", missing),)
    # An alarm: what it passes without must not grow with the tries, so it never spends less than the first.
    alpha = stats.spent_at_first(config.alpha, evidence.attempt)
    lower = measures.gap_lower((train, right), (train_n, n), alpha=alpha)
    upper = -measures.gap_lower((right, train), (n, train_n), alpha=alpha)
    gap = train / train_n - right / n
    numbers: dict[str, float] = {
        "train_accuracy": train / train_n,
        "train_records": train_n,
        "holdout_accuracy": right / n,
        "n": n,
        "gap": gap,
        "gap_lower": lower,
        "gap_upper": upper,
        "alpha": alpha,
    }
    both = f"{say.percent(train / train_n)} of the training records answered right"
    both += f", {say.percent(right / n)} of the new holdouts"
    if limit is None:
        return (Finding("train_gap", "pass", f"train gap: {both}; no limit is set", numbers=numbers),)
    numbers["limit"] = limit
    if n < _FEWEST:
        few = f"train gap: {say.records(n, 'holdout')} are too few to measure it by, it takes {_FEWEST}"
        return (Finding("train_gap", "undecided", few, numbers=numbers | {"n_needed": _FEWEST}),)
    allowed = f"{say.with_unit(limit)} allowed"
    if lower > limit:
        remedy = "keep the champion, and train shorter, with early_stop or augmentation"
        sentence = f"train gap: {both}, a gap of at least {say.with_unit(lower)}, {allowed}: {remedy}"
        return (Finding("train_gap", "fail", sentence, numbers=numbers),)
    unseen = f"a gap above {say.with_unit(limit)} is not shown ({say.records(n, 'holdout')})"
    return (Finding("train_gap", "pass", f"train gap: {both}; {unseen}", numbers=numbers),)


def _latency(measured: Running, limit: float, config: GateConfig) -> Finding:
    """The median over rounds of challenger / champion on the same batch, by its exact limits."""
    before = np.asarray(measured.champion_rounds, dtype=np.float64)
    after = np.asarray(measured.challenger_rounds, dtype=np.float64)
    sound = len(before) == len(after) and bool(
        np.isfinite(before).all() and np.isfinite(after).all() and (before > 0).all() and (after > 0).all()
    )
    limits = measures.median_limits(after / before, alpha=config.alpha) if sound else None
    if limits is None:
        missing = "latency: too few sound rounds of both models were timed; run the update again"
        return Finding("latency", "undecided", missing, numbers={"rounds": len(after), "limit": limit})
    low, high = limits
    ratio = float(np.median(after / before))
    numbers = {
        "rounds": len(after),
        "ratio": ratio,
        "ratio_lower": low,
        "ratio_upper": high,
        "limit": limit,
        "alpha": config.alpha,
        "champion_seconds": float(np.median(before)),
        "challenger_seconds": float(np.median(after)),
    }
    took = f"latency: an answer takes {ratio:.2f} times the champion's time"
    if high <= limit:
        return Finding(
            "latency", "pass", f"{took}, at most {say.apart(high, limit)}, {limit:g} allowed", numbers=numbers
        )
    if low > limit:
        remedy = "keep the champion, or allow a larger latency_ratio"
        return Finding(
            "latency",
            "fail",
            f"{took}, at least {say.apart(low, limit)}, {limit:g} allowed: {remedy}",
            numbers=numbers,
        )
    unclear = (
        f"{took}, between {low:.2f} and {high:.2f}, {limit:g} allowed; {len(after)} rounds cannot settle it"
    )
    return Finding("latency", "undecided", f"{unclear}; a person decides", numbers=numbers)


def _size(measured: Running, limit: float, config: GateConfig) -> Finding:
    before, after = measured.champion_bytes, measured.challenger_bytes
    if not (before and after and 0 < before < inf and 0 < after < inf):
        missing = "size: the size of a served network is missing; run the update again"
        return Finding("size", "undecided", missing, numbers={"limit": limit})
    ratio = after / before
    numbers = {"champion_bytes": before, "challenger_bytes": after, "ratio": ratio, "limit": limit}
    times = say.apart(ratio, limit)
    grew = f"size: the served network has {times} times the champion's bytes, {limit:g} allowed"
    if ratio <= limit:
        return Finding("size", "pass", grew, numbers=numbers)
    remedy = "keep the champion, or allow a larger size_ratio"
    return Finding("size", "fail", f"{grew}: {remedy}", numbers=numbers)


def _seconds(measured: Running, limit: float, config: GateConfig) -> Finding:
    seconds = measured.seconds
    if seconds is None or not isfinite(seconds) or seconds < 0:
        missing = "update cost: the seconds that learning took are missing; run the update again"
        return Finding("update_cost", "undecided", missing, numbers={"limit": limit})
    numbers = {"seconds": seconds, "limit": limit}
    took = f"update cost: learning took {say.apart(seconds, limit)} seconds, {limit:g} allowed"
    if seconds <= limit:
        return Finding("update_cost", "pass", took, numbers=numbers)
    remedy = "keep the champion, and train fewer epochs, or allow more update_seconds"
    return Finding("update_cost", "fail", f"{took}: {remedy}", numbers=numbers)
