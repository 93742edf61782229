"""Alembic environment: the engine is handed over by `resources.database.Database`."""

from alembic import context

import sql.alerts
import sql.models
import sql.object_records
import sql.objects  # noqa: F401  (the tables register themselves)
from sql.base import Base

engine = context.config.attributes["engine"]
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()
