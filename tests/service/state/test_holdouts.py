"""Stored answers: bits that are computed once and come back as they were; on both databases."""

import numpy as np
import sqlalchemy as sa

from service.state import holdouts
from tests.support.service_parts import NAME


def test_bits_of_any_number_come_back_as_they_were(database: sa.Engine) -> None:
    rng = np.random.default_rng(0)
    answered = {size: rng.random(size) < 0.5 for size in (0, 1, 7, 8, 9, 1000)}
    with database.begin() as connection:
        holdouts.save(connection, NAME, version=1, answered=answered)
        found = holdouts.of_version(connection, NAME, version=1)
    assert set(found) == set(answered)
    for size, bits in answered.items():
        np.testing.assert_array_equal(found[size], bits)


def test_an_answer_is_never_written_over(database: sa.Engine) -> None:
    with database.begin() as connection:
        holdouts.save(connection, NAME, version=1, answered={0: np.array([True, False])})
        holdouts.save(
            connection, NAME, version=1, answered={0: np.array([False, False]), 1: np.array([True])}
        )
        found = holdouts.of_version(connection, NAME, version=1)
    assert found[0].tolist() == [True, False]
    assert found[1].tolist() == [True]


def test_versions_parts_and_pipelines_keep_their_own_answers(database: sa.Engine) -> None:
    bits = np.array([True, True, False, False])
    with database.begin() as connection:
        holdouts.save(connection, NAME, version=1, answered={0: bits})
        holdouts.save(connection, NAME, version=2, answered={0: ~bits})
        holdouts.save(connection, NAME, version=1, answered={0: bits[:1]}, part="audit")
        holdouts.save(connection, "other", version=1, answered={})
        assert holdouts.of_version(connection, "other", version=1) == {}
        assert holdouts.of_version(connection, NAME, version=1, part="audit")[0].tolist() == [True]
        assert holdouts.of_version(connection, NAME, version=2)[0].tolist() == (~bits).tolist()


def test_an_empty_holdout_has_no_accuracy(database: sa.Engine) -> None:
    with database.begin() as connection:
        answered = {0: np.array([True, True, False, False]), 1: np.zeros(0, dtype=bool)}
        holdouts.save(connection, NAME, version=1, answered=answered)
        assert holdouts.accuracies(connection, NAME, [1, 2]) == {1: {0: 0.5}, 2: {}}
