"""The server's durable state in SQLite (by default) or PostgreSQL (by URL), behind `core.ports.RoundStore`."""

from fedlearn.adapters.database.store import DatabaseRoundStore

__all__ = ["DatabaseRoundStore"]
