"""The tables. `migrations/` makes them; a test holds the two equal.

Only `tasks.model_version` says which model is current: a version's row and an object in storage mean nothing without it.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from fedlearn.adapters.database.columns import Document, UtcTime

metadata = MetaData(
    naming_convention={  # so that a later migration can name what it alters
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

plans = Table(
    "plans",
    metadata,
    Column("digest", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("plan_digest", String, ForeignKey("plans.digest"), nullable=False),
    Column("policy", Document, nullable=False),
    Column("rounds", Integer),
    Column("created_at", UtcTime, nullable=False),
    Column("upload_version", Integer, nullable=False),
    Column("upload_key", String, nullable=False),
    Column("upload_sha256", String, nullable=False),
    Column("upload_size_bytes", BigInteger, nullable=False),
    Column("model_version", Integer),
    Column("target_accuracy", Float(53)),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("task", String, ForeignKey("tasks.id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("key", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("round", Integer),
    Column("created_at", UtcTime, nullable=False),
    Column("evaluation", Document),
    Column("parent", Integer),
    Column("contributors", Integer),
    Column("examples", BigInteger),
)

model_labels = Table(
    "model_labels",
    metadata,
    Column("task", String, primary_key=True),
    Column("label", String, primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["task", "version"], ["model_versions.task", "model_versions.version"]),
)

rounds = Table(
    "rounds",
    metadata,
    Column("task", String, ForeignKey("tasks.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("revision", String, nullable=False),  # a digest of the whole round, participants included
    Column("phase", String, nullable=False),
    Column("phase_since", UtcTime, nullable=False),
    Column("phase_seconds", Document, nullable=False),
    Column("opened_at", UtcTime, nullable=False),
    Column("reason", String),
    Column("policy", Document, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("base_key", String, nullable=False),
    Column("base_sha256", String, nullable=False),
    Column("base_size_bytes", BigInteger, nullable=False),
    Column("start", Document),  # what devices begin with, where it is not the base
    Column("aggregate", Document),
)

participants = Table(
    "participants",
    metadata,
    Column("task", String, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("device", String, primary_key=True),
    Column("place", Integer, nullable=False),  # in the order of selection
    Column("standing", String, nullable=False),
    Column("code", String),
    ForeignKeyConstraint(["task", "number"], ["rounds.task", "rounds.number"]),
    sqlite_with_rowid=False,  # rows lie in the order of the key, and a round's beside each other
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("generation", Integer, primary_key=True, autoincrement=False),  # the highest is current
    Column("kid", String, nullable=False),
    Column("private_key", LargeBinary, nullable=False),  # PEM
    Column("created_at", UtcTime, nullable=False),
)

leadership = Table(
    "leadership",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1: a table of one row, which writers lock
    Column("epoch", Integer, nullable=False),
    Column("holder", String, nullable=False),
    Column("address", String, nullable=False),
)

presences = Table(
    "presences",
    metadata,
    Column("device", String, primary_key=True),
    Column("replica", String, nullable=False),
    Column("checkin", Text, nullable=False),
    Column("waiting", Boolean, nullable=False),
    Column("due", Float(53), nullable=False),  # seconds since the epoch by the database's clock, which all replicas share
    Column("seen_at", Float(53), nullable=False),
)

_number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up an INTEGER and nothing else

events = Table(
    "events",
    metadata,
    Column("number", _number, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("kind", String, nullable=False),
    Column("task", String, nullable=False),
    Column("round", Integer),
    Column("code", String),
    Column("count", Integer, nullable=False),
    Column("devices", Document, nullable=False),
    Column("detail", String, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", _number, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("task", String),
    Column("outcome", String, nullable=False),
)
