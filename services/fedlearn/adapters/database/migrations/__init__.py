"""The tables' history as Alembic revisions, shipped with the package and run by the program itself.

A change of `tables.py` comes with a new file in `versions/`. Migrations go forward only, and leave what the release before
needs, so that its replicas work on while the next one's are rolled out.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text

from fedlearn.adapters.database.engine import Database
from fedlearn.core.errors import Code, SetupError

_ADVISORY_LOCK = 0x6665646C6561726E  # "fedlearn"


def upgrade(database: Database) -> None:
    """Run the missing revisions, all of them or none, in one transaction that only one process at a time gets into.

    Raises:
        Outage: `database_unavailable`.
        SetupError: `setting_invalid` when the database is ahead of this version.
    """
    if database.is_sqlite:
        database.use_write_ahead_log()
    with database.writing() as connection:
        if not database.is_sqlite:  # there, the write transaction itself lets in one at a time
            for limit in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                connection.execute(text(f"SET LOCAL {limit} = 0"))  # others wait here for as long as a migration takes
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        try:
            command.upgrade(configuration(connection), "head")
        except CommandError as error:
            raise SetupError(
                Code.SETTING_INVALID, "The database belongs to a newer fedlearn: run that one, or restore a backup."
            ) from error


def configuration(connection: Connection) -> Config:
    """Alembic's configuration, which needs no ini file; `env.py` finds the connection in its attributes."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
