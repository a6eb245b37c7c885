"""The champion row moves by compare-and-set; which versions it may point at; on both databases."""

from functools import partial

import pytest
import sqlalchemy as sa

from service.errors import ChampionMissingError, ChampionMovedError, VersionUnfitError
from service.state import champions, ledger
from service.state.champions import Champion
from service.state.ledger import By
from streams.state.tables import reading
from tests.support.service_parts import NAME, add_version, promote, three_champions
from tests.support.threads import outcome, together


def current(engine: sa.Engine) -> Champion | None:
    with engine.begin() as connection:
        return champions.current(connection, NAME)


def current_version(engine: sa.Engine) -> int | None:
    champion = current(engine)
    return champion.version if champion else None


def roll_back(engine: sa.Engine, number: int | None = None) -> ledger.Entry:
    with engine.begin() as connection:
        return champions.roll_back(connection, NAME, number=number, by=By("Ada", "it was worse"))


def challenger(engine: sa.Engine) -> int | None:
    with engine.begin() as connection:
        return champions.challenger(connection, NAME)


def chain(engine: sa.Engine) -> list[ledger.Entry]:
    with engine.begin() as connection:
        return ledger.entries(connection, NAME)


def test_there_is_no_champion_before_the_first_promotion(database: sa.Engine) -> None:
    assert current(database) is None
    assert challenger(database) is None


def test_promotions_raise_the_revision_and_fill_the_ledger(database: sa.Engine) -> None:
    three_champions(database)
    champion = current(database)
    assert champion is not None
    assert (champion.version, champion.revision) == (3, 3)
    found = [(entry.action, entry.version, entry.previous_version) for entry in chain(database)]
    assert found == [("promote", 1, None), ("promote", 2, 1), ("promote", 3, 2)]
    assert ledger.first_break(chain(database)) is None


@pytest.mark.parametrize("base_revision", [None, 1])
def test_of_two_promotions_from_one_base_one_wins(database: sa.Engine, base_revision: int | None) -> None:
    if base_revision:
        add_version(database, 1, parent=None, learnt=[0])
        promote(database, 1, base_revision=None)
    numbers = [10 + number for number in range(8)]
    for number in numbers:
        add_version(database, number, parent=base_revision, learnt=[0, 1])
    outcomes = together(
        8,
        lambda place: outcome(partial(promote, database, numbers[place], base_revision=base_revision)),
    )
    winners = [number for number, each in zip(numbers, outcomes, strict=True) if each is None]
    lost = [each for each in outcomes if isinstance(each, ChampionMovedError)]
    assert (len(winners), len(lost)) == (1, 7), outcomes
    assert current_version(database) == winners[0]
    assert [entry.version for entry in chain(database)][-1] == winners[0]
    with database.begin() as connection:
        promoted = [champions.version(connection, NAME, number) for number in numbers]
    assert [each.version for each in promoted if each and each.promoted_at] == winners


def test_a_champion_that_came_back_is_not_the_base_it_was(database: sa.Engine) -> None:
    three_champions(database)
    add_version(database, 4, parent=2, learnt=[0, 1, 9])
    roll_back(database)
    # Version 2 is champion again, and yet a challenger made from its first reign (revision 2) is refused.
    with pytest.raises(ChampionMovedError, match="no longer the one"):
        promote(database, 4, base_revision=2)
    promote(database, 4, base_revision=4)
    assert current_version(database) == 4


@pytest.mark.parametrize(("expected", "moved"), [(3, False), (2, True), (None, True)])
def test_the_champion_of_now_is_told_from_an_earlier_one(
    database: sa.Engine, expected: int | None, moved: bool
) -> None:
    three_champions(database)
    with database.begin() as connection:
        check = partial(champions.require_unmoved, connection, NAME, expected_revision=expected)
        assert isinstance(outcome(check), ChampionMovedError) == moved


def test_no_champion_is_told_from_a_first_one(database: sa.Engine) -> None:
    with database.begin() as connection:
        champions.require_unmoved(connection, NAME, expected_revision=None)
        with pytest.raises(ChampionMovedError):
            champions.require_unmoved(connection, NAME, expected_revision=1)


def test_a_rollback_goes_to_the_champion_before_by_default(database: sa.Engine) -> None:
    three_champions(database)
    entry = roll_back(database)
    assert (entry.action, entry.version, entry.previous_version) == ("rollback", 2, 3)
    assert (entry.actor, entry.reason, entry.update_id) == ("Ada", "it was worse", "u-2")
    assert current_version(database) == 2
    assert roll_back(database).version == 1


def test_a_rollback_can_name_any_former_champion_also_a_newer_one(database: sa.Engine) -> None:
    three_champions(database)
    roll_back(database, 1)
    roll_back(database, 3)
    champion = current(database)
    assert champion is not None
    assert (champion.version, champion.revision) == (3, 5)
    assert ledger.first_break(chain(database)) is None


def test_without_a_champion_there_is_nothing_to_roll_back(database: sa.Engine) -> None:
    with pytest.raises(ChampionMissingError, match="nothing to roll back"):
        roll_back(database)


def test_the_first_champion_has_nothing_before_it(database: sa.Engine) -> None:
    add_version(database, 1, parent=None, learnt=[0])
    promote(database, 1, base_revision=None)
    with pytest.raises(VersionUnfitError, match="Version 1 is the first champion"):
        roll_back(database)


@pytest.mark.parametrize("number", [4, 99])
def test_a_version_that_was_never_champion_is_refused_with_those_that_were(
    database: sa.Engine, number: int
) -> None:
    three_champions(database)
    add_version(database, 4, parent=3, learnt=[0])
    with pytest.raises(VersionUnfitError, match=f"Version {number} .* never champion. .*: 1, 2.") as caught:
        roll_back(database, number)
    assert caught.value.members == {"version": number}
    assert current_version(database) == 3


def test_the_champion_of_now_is_refused_as_a_target(database: sa.Engine) -> None:
    three_champions(database)
    with pytest.raises(VersionUnfitError, match="Version 3 is the champion now"):
        roll_back(database, 3)
    assert len(chain(database)) == 3


def test_of_two_rollbacks_at_once_none_is_lost_unseen(database: sa.Engine) -> None:
    three_champions(database)
    outcomes = together(2, lambda _: outcome(partial(roll_back, database, 1)))
    found = [each for each in outcomes if isinstance(each, VersionUnfitError | ChampionMovedError)]
    assert len(found) == 1
    assert current_version(database) == 1
    assert len(chain(database)) == 4


def test_the_lineage_of_a_version_are_its_parents_oldest_first(database: sa.Engine) -> None:
    three_champions(database)
    add_version(database, 4, parent=2, learnt=[0, 1, 9])
    with database.begin() as connection:
        assert [each.version for each in champions.lineage(connection, NAME, 4)] == [1, 2, 4]
        assert champions.lineage(connection, NAME, None) == []
        assert champions.lineage(connection, NAME, 77) == []


def test_a_long_lineage_is_one_statement(database: sa.Engine) -> None:
    for number in range(1, 301):
        add_version(database, number, parent=number - 1 or None, learnt=[number])
    statements: list[str] = []
    sa.event.listen(database, "before_cursor_execute", lambda *each: statements.append(each[2]))
    with reading(database) as connection:
        found = champions.lineage(connection, NAME, 300)
    assert [each.version for each in found] == list(range(1, 301))
    assert len([each for each in statements if "SELECT" in each]) == 1


def test_the_challenger_is_the_newest_version_until_it_was_champion(database: sa.Engine) -> None:
    add_version(database, 1, parent=None, learnt=[0])
    assert challenger(database) == 1
    promote(database, 1, base_revision=None)
    assert challenger(database) is None
    add_version(database, 2, parent=1, learnt=[0, 1])
    add_version(database, 3, parent=1, learnt=[0, 1])
    assert challenger(database) == 3
    promote(database, 3, base_revision=1)
    assert challenger(database) is None
    roll_back(database)
    assert challenger(database) is None


def test_a_promotion_that_came_back_keeps_its_first_date(database: sa.Engine) -> None:
    three_champions(database)

    def promoted_at() -> float | None:
        with database.begin() as connection:
            found = champions.version(connection, NAME, 2)
        return found.promoted_at if found else None

    first = promoted_at()
    roll_back(database)
    assert first is not None
    assert promoted_at() == first
