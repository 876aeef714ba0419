"""Plans, tasks, model versions, rounds, participants and signing keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "plans",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_plans"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("plan_digest", sa.String(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("rounds", sa.Integer()),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("upload_version", sa.Integer(), nullable=False),
        sa.Column("upload_key", sa.String(), nullable=False),
        sa.Column("upload_sha256", sa.String(), nullable=False),
        sa.Column("upload_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("model_version", sa.Integer()),
        sa.Column("target_accuracy", sa.Float(53)),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.ForeignKeyConstraint(["plan_digest"], ["plans.digest"], name="fk_tasks_plans"),
    )
    op.create_table(
        "model_versions",
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("round", sa.Integer()),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("evaluation", sa.Text()),
        sa.PrimaryKeyConstraint("task", "version", name="pk_model_versions"),
        sa.ForeignKeyConstraint(["task"], ["tasks.id"], name="fk_model_versions_tasks"),
    )
    op.create_table(
        "rounds",
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("phase_since", sa.Text(), nullable=False),
        sa.Column("phase_seconds", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.Text(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("base_version", sa.Integer(), nullable=False),
        sa.Column("base_key", sa.String(), nullable=False),
        sa.Column("base_sha256", sa.String(), nullable=False),
        sa.Column("base_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("aggregate", sa.Text()),
        sa.PrimaryKeyConstraint("task", "number", name="pk_rounds"),
        sa.ForeignKeyConstraint(["task"], ["tasks.id"], name="fk_rounds_tasks"),
    )
    op.create_table(
        "participants",
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("standing", sa.String(), nullable=False),
        sa.Column("code", sa.String()),
        sa.PrimaryKeyConstraint("task", "number", "device", name="pk_participants"),
        sa.ForeignKeyConstraint(["task", "number"], ["rounds.task", "rounds.number"], name="fk_participants_rounds"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "signing_keys",
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("kid", sa.String(), nullable=False),
        sa.Column("private_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("generation", name="pk_signing_keys"),
    )
