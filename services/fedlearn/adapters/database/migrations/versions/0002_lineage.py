"""Whom a version comes from and what is in it, and labels that pin versions."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # nullable, since the release before writes versions without them
    op.add_column("model_versions", sa.Column("parent", sa.Integer()))
    op.add_column("model_versions", sa.Column("contributors", sa.Integer()))
    op.add_column("model_versions", sa.Column("examples", sa.BigInteger()))
    op.create_table(
        "model_labels",
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("task", "label", name="pk_model_labels"),
        sa.ForeignKeyConstraint(
            ["task", "version"], ["model_versions.task", "model_versions.version"], name="fk_model_labels_model_versions"
        ),
    )
    _fill_in(op.get_bind())


def _fill_in(connection: sa.Connection) -> None:
    """What the rounds still know of the versions that they made."""
    versions = sa.table("model_versions", *map(sa.column, ("task", "version", "round", "parent", "contributors", "examples")))
    rounds = sa.table("rounds", *map(sa.column, ("task", "number", "base_version", "aggregate")))
    made = sa.select(versions.c.task, versions.c.version, rounds.c.base_version, rounds.c.aggregate).join_from(
        versions, rounds, (rounds.c.task == versions.c.task) & (rounds.c.number == versions.c.round)
    )
    for task, version, base, aggregate in connection.execute(made.where(rounds.c.aggregate.is_not(None))).all():
        document = json.loads(aggregate)
        change = sa.update(versions).where(versions.c.task == task, versions.c.version == version)
        filled = {"parent": base, "contributors": len(document["contributors"]), "examples": document["examples"]}
        connection.execute(change.values(filled))
