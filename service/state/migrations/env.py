"""What alembic runs: the migrations, on the connection that `service.state.database.migrate` hands over."""

from alembic import context

from streams.state.manifest import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=False
)
with context.begin_transaction():
    context.run_migrations()
