"""Flags of products: own ones, those inherited from what a product is made of, and who set them why"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0040"
down_revision = "0030"
branch_labels = None
depends_on = None

PRODUCT_TABLES = (
    "calibrator_files", "images", "backgrounds", "source_lists", "psfs", "world_coordinates", "zero_points", "refs",
    "differences", "detection_lists", "cutouts", "measurement_sets", "deepscore_sets", "association_sets",
    "forced_photometry_sets", "alert_sets",
)  # fmt: skip


def upgrade() -> None:
    for table in PRODUCT_TABLES:
        for name in ("own_bitflag", "upstream_bitflag"):
            op.add_column(table, sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
        op.execute(f"UPDATE {table} SET own_bitflag = bitflag WHERE bitflag <> 0")  # noqa: S608  (names of our own)
    op.create_table(
        "flag_changes",
        sa.Column("number", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("product", sa.String(length=32), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("set_flags", postgresql.JSONB(), nullable=False),
        sa.Column("cleared_flags", postgresql.JSONB(), nullable=False),
        sa.Column("reason", sa.String(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_flag_changes"),
    )
    op.create_index("ix_flag_changes_partition", "flag_changes", ["partition", "ccd"])


def downgrade() -> None:
    op.drop_table("flag_changes")
    for table in PRODUCT_TABLES:
        op.drop_column(table, "upstream_bitflag")
        op.drop_column(table, "own_bitflag")
