"""Types of flats and sets of masters"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("exposures", sa.Column("flat_type", sa.String(length=16), server_default="", nullable=False))
    op.add_column("calibrator_files", sa.Column("flat_type", sa.String(length=16), server_default="", nullable=False))
    op.add_column(
        "calibrator_files", sa.Column("calibration_set", sa.String(length=16), server_default="nightly", nullable=False)
    )


def downgrade() -> None:
    op.drop_column("calibrator_files", "calibration_set")
    op.drop_column("calibrator_files", "flat_type")
    op.drop_column("exposures", "flat_type")
