"""Alembic runs this file: it migrates within the transaction that its caller holds."""

from alembic import context

from fedlearn.adapters.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
