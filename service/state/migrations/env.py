"""Entry point of alembic: runs the migrations on the connection of `service.state.database.migrate`."""

from alembic import context

from streams.state.manifest import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=False
)
with context.begin_transaction():
    context.run_migrations()
