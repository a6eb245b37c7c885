"""Data and shift guards: is the batch sound, and does it resemble what was learnt last?

Too little, missing or broken evidence is undecided, with the reason; never a pass. A shift fails nothing.
"""

from collections.abc import Sequence

import numpy as np

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import (
    DataEvidence,
    Evidence,
    Finding,
    GateConfig,
    Note,
    ShiftEvidence,
    SuspectKind,
    Suspects,
)


def data(evidence: DataEvidence, config: GateConfig) -> tuple[Finding, ...]:
    """Judges whether a batch can be learnt from: broken values, anomalies, label errors, suspect records.

    Anomalies come before labels: where the features are broken, the labels disagree as a consequence.
    """
    values = _values(evidence)
    if values.answer != "pass" or not evidence.has_reference:
        return (values,)
    labels = _rate(
        evidence,
        config,
        guard="labels",
        rate=evidence.label_error_rate,
        reference=evidence.reference_label_error_rate,
        excess=config.label_error_excess,
    )
    anomalies = _rate(
        evidence,
        config,
        guard="anomalies",
        rate=evidence.anomaly_rate,
        reference=evidence.reference_anomaly_rate,
        excess=config.anomaly_excess,
    )
    return (values, anomalies, labels, *_suspects(evidence.suspects, config))


def _values(evidence: DataEvidence) -> Finding:
    counted = _is_count(evidence.records) and _is_count(evidence.nonfinite_records)
    numbers: dict[str, float] = {}
    if counted:
        numbers = {"records": int(evidence.records), "nonfinite_records": int(evidence.nonfinite_records)}
    if evidence.misshapen is not None:
        sentence = (
            f"values: {evidence.misshapen}; the batch was not learnt: correct the source or the pipeline"
        )
        return Finding("values", "fail", sentence, numbers=numbers)
    if not counted or evidence.nonfinite_records > evidence.records:
        sentence = (
            f"values: {evidence.nonfinite_records} broken records of {evidence.records} cannot be; "
            "count the batch again"
        )
        return Finding("values", "undecided", sentence, numbers=numbers)
    if evidence.records == 0:
        return Finding("values", "undecided", "values: the batch is empty; wait for records", numbers=numbers)
    if evidence.nonfinite_records:
        bad = f"{evidence.nonfinite_records} of {say.records(evidence.records)}"
        sentence = (
            f"values: {bad} hold a NaN or an infinite number; the batch was not learnt: correct the source"
        )
        return Finding("values", "fail", sentence, numbers=numbers)
    sentence = f"values: all {say.records(evidence.records)} are whole"
    if evidence.records == 1:
        sentence = "values: the only record is whole"
    if not evidence.has_reference:
        sentence += "; labels and anomalies have nothing to be compared with yet"
    if evidence.suspects:
        numbers |= {
            "dead_features": len(evidence.suspects.dead_features),
            "far_features": len(evidence.suspects.far_features),
        }
        sentence += _unusual(evidence.suspects)
    return Finding("values", "pass", sentence, numbers=numbers)


def _unusual(seen: Suspects) -> str:
    """Unusual features, in words; they stop nothing."""
    sentence = ""
    if seen.dead_features:
        sentence += f"; {_features(seen.dead_features)} never varied, and did before"
    if seen.far_features:
        sentence += f"; {_features(seen.far_features)} held values over a hundred times larger than before"
    return sentence


def _features(features: Sequence[int]) -> str:
    """The first few by number: "feature 3", "features 3, 9, 11, 12, 13 and 5 more"."""
    shown = features[:_FEATURES_NAMED]
    if len(features) == len(shown):
        return f"feature{'' if len(features) == 1 else 's'} {say.listed(shown)}"
    return f"features {', '.join(map(str, shown))} and {len(features) - len(shown)} more"


_FEATURES_NAMED = 5


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and bool(value >= 0)


_RATE_WORDS = {
    "labels": ("disagree with their neighbours", "check how they were labelled"),
    "anomalies": ("look like no other record", "check the features"),
}
"""Rate -> what such records do, and the remedy."""


def _rate(
    evidence: DataEvidence, config: GateConfig, *, guard: str, rate: float, reference: float, excess: float
) -> Finding:
    """Fails where a rate exceeds the reference by more than allowed, and by more than chance explains."""
    numbers = {"sample": evidence.sample, "rate": rate, "reference_rate": reference, "excess_allowed": excess}
    described, remedy = _RATE_WORDS[guard]
    if not evidence.sample >= 1:
        sentence = (
            f"{guard}: {say.records(evidence.records)} are too few to compare with earlier batches; "
            "merge the batch with the next, or let a person look at it"
        )
        return Finding(guard, "undecided", sentence, numbers=numbers)
    if not (0 <= rate <= 1 and 0 <= reference <= 1):
        sentence = f"{guard}: the rates are not numbers between 0 and 1; screen the batch again"
        return Finding(guard, "undecided", sentence, numbers=numbers)
    p_excess = float(stats.excess_p(rate, reference, sample=evidence.sample))
    numbers |= {"p_excess": p_excess, "alpha": config.alpha}
    compared = (
        f"{say.percent(rate)} of the batch {described}, {say.percent(reference)} did before, "
        f"{say.with_unit(excess)} more allowed ({say.records(evidence.sample)} compared)"
    )
    if rate - reference > excess and p_excess <= config.alpha:
        return Finding(
            guard, "fail", f"{guard}: {compared}; the batch was not learnt: {remedy}", numbers=numbers
        )
    return Finding(guard, "pass", f"{guard}: {compared}", numbers=numbers)


_SUSPECT_WORDS: dict[SuspectKind, tuple[str, str]] = {
    "planted": (
        "are alike only by a rare mark, under labels that the rest of their features contradicts",
        "look at the worst records for a mark that somebody planted",
    ),
    "outliers": (
        "are far from earlier records and from the rest of the batch",
        "look at the worst records and at what made them",
    ),
    "mislabelled": (
        "carry a label that neither their neighbours nor the champion would give",
        "look at the worst records and how they were labelled",
    ),
}
"""Kind -> what such records do, and the remedy."""


def _suspects(seen: Suspects | None, config: GateConfig) -> tuple[Finding, ...]:
    """One finding for each kind of suspect records: is its share too far above that of the past holdouts?

    Two tests must say so, each at alpha over the number of kinds: an exact binomial one of H0 "at most the
    expected share + excess", and one of H0 "no more than the past holdouts", whose share is estimated too.
    """
    if seen is None:
        return ()
    if not (seen.records >= 1 and seen.reference_records >= 1):
        sentence = (
            f"suspects: the batch, or the {say.records(seen.reference_records)} of past holdouts, are too "
            "few to find suspect records; merge the batch with the next, or let a person look at it"
        )
        return (Finding("suspects", "undecided", sentence),)
    return tuple(_suspect(kind, seen, config) for kind in _SUSPECT_WORDS)


def _suspect(kind: SuspectKind, seen: Suspects, config: GateConfig) -> Finding:
    rate, expected = seen.rates[kind], seen.expected_rates[kind]
    excess = config.planted_excess if kind == "planted" else config.suspect_excess
    alpha = config.alpha / len(_SUSPECT_WORDS)
    numbers: dict[str, float] = {
        "sample": seen.records,
        "rate": rate,
        "reference_records": seen.reference_records,
        "expected_rate": expected,
        "excess_allowed": excess,
    }
    if not (0 <= rate <= 1 and 0 <= expected <= 1):
        sentence = f"{kind}: the shares are not numbers between 0 and 1; screen the batch again"
        return Finding(kind, "undecided", sentence, numbers=numbers)
    p_excess = float(stats.excess_p(rate, min(1.0, expected + excess), sample=seen.records))
    p_chance = float(
        stats.higher_p(rate, expected, sample=seen.records, reference_sample=seen.reference_records)
    )
    numbers |= {"p_excess": p_excess, "p_chance": p_chance, "alpha": alpha}
    described, remedy = _SUSPECT_WORDS[kind]
    compared = (
        f"{kind}: {say.percent(rate)} of {say.records(seen.records)} {described}; "
        f"{say.percent(expected)} is expected by the past holdouts, and {say.with_unit(excess)} more "
        f"{'is' if say.points(excess) == '1' else 'are'} allowed"
    )
    if max(p_excess, p_chance) <= alpha:
        return Finding(kind, "fail", f"{compared}; the batch was not learnt: {remedy}", numbers=numbers)
    return Finding(kind, "pass", compared, numbers=numbers)


def shift(evidence: Evidence, config: GateConfig) -> tuple[Finding, ...]:
    """Sends a shifted batch to review, where the pipeline asks for that.

    New data is supposed to be new: a shift never fails a model.
    """
    seen = evidence.shift
    if config.on_shift != "review" or seen is None or seen.verdict == "same":
        return ()
    note = shift_note(seen)
    return (Finding("shift", "undecided", f"{note.sentence}; a person decides", numbers=note.numbers),)


def shift_note(seen: ShiftEvidence) -> Note:
    """The result of the shift tests as a note."""
    numbers = {f"p_{test}": p for test, p in seen.p_values.items()}
    numbers |= {
        "shifted": int(seen.verdict == "shifted"),
        "alpha": seen.alpha,
        "distance": seen.distance,
        "reference_records": seen.reference_records,
        "window_records": seen.window_records,
        "label_shift": seen.label_shift,
    }
    optional = {
        "feature": seen.feature,
        "prior_shift": seen.prior_shift,
        "estimated_accuracy": seen.estimated_accuracy,
        "reference_accuracy": seen.reference_accuracy,
    }
    numbers |= {name: float(value) for name, value in optional.items() if value is not None}
    return Note("shift", f"shift: {_shift_words(seen)}", numbers)


def _shift_words(seen: ShiftEvidence) -> str:
    compared = f"{say.records(seen.window_records)} compared with {seen.reference_records} of past holdouts"
    if seen.verdict == "undecided":
        return f"{compared} are too few to say whether the batch is shifted"
    rate = f"false alarms at most {say.percent(seen.alpha)} of batches"
    if seen.verdict == "same":
        return f"none found ({compared}; {rate})"
    words = {
        "features": f"feature {seen.feature} differs by {seen.distance:.2f} of 1",
        "probabilities": "the champion answers with other confidence",
        "labels": "the champion answers other classes",
    }
    found = [words[test] for test in words if seen.p_values.get(test, 1.0) <= seen.alpha]
    sentence = f"{' and '.join(found)} ({compared}; {rate})"
    if seen.label_shift >= _LABELS_MOVED:
        sentence += f"; the shares of the labels moved by {say.with_unit(seen.label_shift)}"
    if seen.estimated_accuracy is not None and seen.reference_accuracy is not None:
        sentence += (
            f"; by its confidence the champion answers about {say.percent(seen.estimated_accuracy)} of the "
            f"batch right, {say.percent(seen.reference_accuracy)} before"
        )
    return sentence


_LABELS_MOVED = 0.1
"""Smallest label shift worth reporting: chance alone moves samples of 500 records of ten classes by 0.06."""
