"""What the devices of a round begin with, where it is a copy of the base in another encoding."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("rounds", sa.Column("start", sa.Text()))
