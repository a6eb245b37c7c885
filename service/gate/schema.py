"""The JSON form of a verdict, as a JSON Schema: every field and every number with what it means."""

from collections.abc import Mapping
from typing import Any, get_args

from service.gate.base import MOST_WORST, VERDICT_SCHEMA, Answer, Metric, Outcome

NUMBERS: Mapping[str, str] = {
    "n": "Records that the answer rests on.",
    "lost": "Records that the baseline answers right and the challenger wrong.",
    "gained": "Records that the baseline answers wrong and the challenger right.",
    "margin": "What may truly be lost less than. A share: 0.05 is five points.",
    "alpha": "Error rate of this one question: what this try, or this look, may spend.",
    "loss": "What was lost, estimated: of accuracy, or of the metric. Below 0 is a gain.",
    "loss_lower": "One-sided limit of the true loss from below, at `alpha`.",
    "loss_upper": "One-sided limit of the true loss from above, at `alpha`; below `margin` passes.",
    "p_noninferior": 'P-value of "the margin or more was lost"; at most `alpha` passes.',
    "p_drop_holm": 'P-value of "nothing was lost", Holm-adjusted over the guard; at most `alarm_alpha` '
    "(`alpha`, in the other guards) fails what did not pass.",
    "baseline_accuracy": "Share that the baseline answers right: the champion, the anchor (`budget`), the "
    "majority class (a first version), or the challenger (`seeds`).",
    "challenger_accuracy": "Share that the challenger answers right; the worst seed (`seeds`).",
    "n_needed": "Records that would settle an undecided question, or that it takes at least.",
    "looks": "Updates that were compared on this holdout, this one among them.",
    "looks_left": "Looks until the holdout is exhausted.",
    "shifted": "1: the batch is shifted; 0: no shift was found, or there are too few records.",
    "traffic": "Share of today's traffic that these records stand for, where a person said so.",
    "pooled": "Experiences that were judged together here, as one block or as one unit.",
    "twins": "Records of the holdout that have a near duplicate in the new data.",
    "relabelled": "Of these, those whose near duplicate carries another label.",
    "relabelled_usual": "Share of the holdout's own neighbours that carry another label.",
    "joined": "Neighbours that were judged with these, because their own records are too few.",
    "unseen": "What one of the smallest experiences could lose without being shown to have lost.",
    "class": "Class id.",
    "score": "Balanced accuracy of a first version (accuracy, where no labels are known).",
    "score_lower": "One-sided limit of the true score from below, at `alpha`.",
    "score_upper": "One-sided limit of the true score from above, at `alpha`.",
    "score_majority": "The score of always saying the commonest class.",
    "n_alone": "Records of the new experience by itself.",
    "loss_alone": "What was lost on the new experience by itself, estimated.",
    "loss_lower_alone": "One-sided limit of that from below, at `alpha`.",
    "loss_upper_alone": "One-sided limit of that from above, at `alpha`.",
    "budget": "What may be lost in all since an experience was learnt.",
    "look": "Which look at the sealed records this was.",
    "gain_asked": "The gain that the new experience must exceed (`learning_gain`, `first_gain`).",
    "slices": "Groups that were judged: a value of the column on a holdout, or on several small ones.",
    "rate": "Share of the records looked at that are so: flipped, suspect, or answered otherwise.",
    "rate_lower": "One-sided limit of the true share from below, at `alpha`.",
    "rate_upper": "One-sided limit of the true share from above, at `alpha`.",
    "limit": "What may not be exceeded.",
    "p_above_holm": 'P-value of "the true share is the limit or less", Holm-adjusted.',
    **{
        f"{side}_{metric}": f"Value of {metric} of the {side} on these records, by the metric's name."
        for side in ("baseline", "challenger")
        for metric in get_args(Metric)
    },
    "baseline_calibration_error": "Expected calibration error of the baseline; reported, never judged.",
    "challenger_calibration_error": "Expected calibration error of the challenger; reported, never judged.",
    "train_accuracy": "Share of the training records that the challenger answers right.",
    "train_records": "Training records that were answered.",
    "holdout_accuracy": "Share of the new holdouts' records that the challenger answers right.",
    "gap": "The difference of the two.",
    "gap_lower": "One-sided limit of the true gap from below, at `alpha`; above `limit` fails.",
    "gap_upper": "One-sided limit of the true gap from above, at `alpha`.",
    "rounds": "Times that both models answered the same batch, in turns.",
    "ratio": "The challenger's time (median of rounds) or bytes, of the champion's.",
    "ratio_lower": "One-sided limit of the true median ratio from below, at `alpha`.",
    "ratio_upper": "One-sided limit of the true median ratio from above, at `alpha`.",
    "champion_seconds": "Median seconds of one batch.",
    "challenger_seconds": "Median seconds of one batch.",
    "champion_bytes": "Bytes of the served network.",
    "challenger_bytes": "Bytes of the served network.",
    "seconds": "That learning took.",
    "golden": "Number of the golden set that it is about: 0, 1, 2 ... within the pipeline.",
    "seeds": "Seeds that learnt the update, the challenger's own among them.",
    "worst_seed": "The seed that the numbers are about.",
    "accuracy_lowest": "Of all seeds, on all holdouts together.",
    "accuracy_highest": "Of all seeds, on all holdouts together.",
    "accuracy_deviation": "Standard deviation over the seeds.",
    "widest_experience": "The experience on whose holdout the seeds lie furthest apart.",
    "widest_spread": "How far they do there, a share.",
    "others": "Records that the seed answers otherwise than the challenger.",
    "records": "Records of the batch.",
    "nonfinite_records": "Records with a NaN or an infinite number.",
    "dead_features": "Features that varied before and never do in the batch.",
    "far_features": "Features with values over a hundred times larger than before.",
    "sample": "Records of the batch that were looked at.",
    "reference_rate": "The share among earlier experiences.",
    "reference_records": "Records of past holdouts that the batch was compared with.",
    "expected_rate": "The share that the past holdouts let expect.",
    "excess_allowed": "How far the true share may lie above that.",
    "p_excess": 'P-value of "the true share is no more than before" (`labels`, `anomalies`), or than what is '
    "allowed above what is expected (suspects).",
    "p_chance": 'P-value of "the batch has no more of them than the past holdouts".',
    "p_features": "P-value of the features' shift, corrected for all comparisons.",
    "p_probabilities": "P-value of the shift of the champion's probabilities, corrected.",
    "p_labels": "P-value of the shift of the champion's answers, corrected.",
    "distance": "Largest Kolmogorov-Smirnov distance of a feature, between 0 and 1.",
    "feature": "The feature that has it.",
    "window_records": "Records of the batch that were compared.",
    "label_shift": "Total variation between the shares of the labels, between 0 and 1.",
    "prior_shift": "The same by the champion's answers (black box shift estimation).",
    "estimated_accuracy": "Of the champion on the batch, by its own confidence.",
    "reference_accuracy": "Of the champion on the past holdouts.",
}
"""Every number that a finding or a note may carry, by its key; which ones it does depends on the question."""


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what `Verdict.as_dict` gives, which is `verdict.json`."""
    numbers = {
        "type": "object",
        "description": "What the sentence rests on.",
        "properties": {key: {"type": "number", "description": meaning} for key, meaning in NUMBERS.items()},
        "additionalProperties": {"type": "number"},
    }
    finding = _object(
        "One guard's answer.",
        guard=_text("The question that was asked, such as `retention`."),
        answer=_one_of(get_args(Answer), "Of this question alone."),
        sentence=_text("The answer in words, with what to do next."),
        experience=_maybe("integer", "The one that it is about; null: several, or none."),
        numbers=numbers,
        experiences=_list_of({"type": "integer"}, "Those that were judged together; empty: one, or none."),
    )
    note = _object(
        "Information that does not influence the outcome.",
        about=_text("What it is about, such as `shift` or `budget`."),
        sentence=_text("In words."),
        numbers=numbers,
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": VERDICT_SCHEMA,
        **_object(
            "What the gate says of an update, and why.",
            schema={"const": VERDICT_SCHEMA, "description": "The schema and its version."},
            outcome=_one_of(
                get_args(Outcome),
                "Any fail rejects, unless a finding `dispute` or `traffic` makes it a question; else "
                "anything undecided goes to review.",
            ),
            reason=_text("The sentence of the finding that decided."),
            findings=_list_of(finding, "One an answered question, in the order of the guards."),
            notes=_list_of(note, "Information that does not influence the outcome."),
            worst=_list_of(
                _worst_record(),
                f"Of a batch that was stopped: at most {MOST_WORST} records, the worst first.",
            ),
        ),
    }


def _worst_record() -> dict[str, Any]:
    deviation = _object(
        "A feature that lies far outside what is usual.",
        feature={"type": "integer", "description": "Index among the flattened features."},
        value={"type": "number", "description": "What the record holds."},
        low={"type": "number", "description": "1st percentile of the past holdouts."},
        high={"type": "number", "description": "99th percentile of the past holdouts."},
    )
    return _object(
        "A record that a person should look at.",
        record=_text("Its record id."),
        kind=_text("What is suspect about it: `planted`, `outliers`, `mislabelled` or `values`."),
        score={"type": "number", "description": "The larger the worse, among records of its kind."},
        reason=_text("In words."),
        label=_maybe("integer", "Class id that it came with."),
        deviations=_list_of(deviation, "Its most unusual features, the farthest first."),
    )


def _object(description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "description": description}


def _one_of(values: tuple[str, ...], description: str) -> dict[str, Any]:
    return {"enum": list(values), "description": description}


def _maybe(kind: str, description: str) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": description}


def _list_of(items: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"type": "array", "items": items, "description": description}
