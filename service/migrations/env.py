"""What alembic runs: the migrations, on the connection that `service.database.migrate` hands over."""

from alembic import context

from streams.manifest import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=False
)
with context.begin_transaction():
    context.run_migrations()
