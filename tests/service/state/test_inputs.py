"""The documents that fix an update's verdict, on both databases; and updates that have none."""

import pytest
import sqlalchemy as sa

from service.state import inputs
from service.state.database import connect, migrate, update_inputs
from tests.support.service_parts import declare, enqueue, read


def test_documents_come_back_with_the_digest_of_their_bytes(database: sa.Engine) -> None:
    texts: dict[inputs.Name, str] = {"configuration": '{"name":"é"}', "plan": "{}"}
    with database.begin() as connection:
        inputs.save(connection, "u-1", texts)
        inputs.save(connection, "u-1", {"result": "[]"})
        assert inputs.are_kept(connection)
        found = inputs.read(connection, "u-1")
        assert inputs.read(connection, "u-2") == {}
    assert {name: each.text for name, each in found.items()} == {**texts, "result": "[]"}
    assert all(each.intact for each in found.values())
    assert found["plan"].digest == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_a_document_is_written_once_and_a_changed_one_is_noticed(database: sa.Engine) -> None:
    with database.begin() as connection:
        inputs.save(connection, "u-1", {"plan": '{"attempt":1}'})
    with pytest.raises(sa.exc.IntegrityError), database.begin() as connection:
        inputs.save(connection, "u-1", {"plan": '{"attempt":2}'})
    with database.begin() as connection:
        connection.execute(sa.update(update_inputs).values(document='{"attempt":3}'))
        found = inputs.read(connection, "u-1")["plan"]
    assert not found.intact
    assert found.found == inputs.digest_of('{"attempt":3}')


def test_updates_of_the_release_before_are_kept_and_have_no_inputs(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    migrate(engine, revision="0005")
    declare(engine)
    update_id = enqueue(engine)
    with engine.begin() as connection:
        assert not inputs.are_kept(connection)
        # This release's own reader wants columns that an older database has not.
        (before,) = connection.execute(sa.text("SELECT * FROM updates")).mappings()
    migrate(engine)
    after = vars(read(engine, update_id))
    assert after.pop("cause") is None
    assert {name: after[name] for name in ("id", "pipeline", "state", "created_at")} == {
        name: before[name] for name in ("id", "pipeline", "state", "created_at")
    }
    assert set(after) == set(before)
    with engine.begin() as connection:
        assert inputs.are_kept(connection)
        assert inputs.read(connection, update_id) == {}
    engine.dispose()
