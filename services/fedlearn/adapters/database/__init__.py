"""The server's durable state in SQLite (by default) or PostgreSQL (by URL), and what several replicas of it share there."""

from fedlearn.adapters.database.lock import AdvisoryLock
from fedlearn.adapters.database.presences import DatabasePresences
from fedlearn.adapters.database.signals import Listener
from fedlearn.adapters.database.store import DatabaseRoundStore

__all__ = ["AdvisoryLock", "DatabasePresences", "DatabaseRoundStore", "Listener"]
