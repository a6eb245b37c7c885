"""Twenty experiences of permuted MNIST: what replay reaches of cumulative training, in which time.

`python -m tests.bench.strategies_permuted` prints one JSON object.
"""

import json
import statistics
import sys
from typing import Any

from tests.bench.mnist_streams import accuracy, build, experience, permuted

EXPERIENCES = 20
RECORDS = 6000
HIDDEN = (400,)
REPLAY: dict[str, Any] = {"capacity": 10_000}
CUMULATIVE: dict[str, Any] = {"max_records": EXPERIENCES * RECORDS}


def run(name: str, **settings: Any) -> tuple[float, float]:
    """Mean accuracy on the test images of all experiences after the last, and seconds of learning."""
    learner = build(name, hidden=HIDDEN, epochs=3, batch_size=64, learning_rate=1e-3, **settings)
    seconds = 0.0
    for step in range(EXPERIENCES):
        seconds += learner.learn(experience(step, permuted(step, "train", records=RECORDS))).seconds
    reached = [accuracy(learner, permuted(step, "test", records=10_000)) for step in range(EXPERIENCES)]
    return statistics.mean(reached), seconds


def figures() -> dict[str, float]:
    replay, replay_seconds = run("replay", **REPLAY)
    cumulative, cumulative_seconds = run("cumulative", **CUMULATIVE)
    return {
        "replay accuracy": replay,
        "cumulative accuracy": cumulative,
        "accuracy": replay / cumulative,
        "seconds": replay_seconds / cumulative_seconds,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(figures()) + "\n")
