"""Zero points by the time Dagster was told of them: the fields in which images have come"""

from alembic import op

revision = "0050"
down_revision = "0041"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_zero_points_materialized_at", "zero_points", ["materialized_at"])


def downgrade() -> None:
    op.drop_index("ix_zero_points_materialized_at", "zero_points")
