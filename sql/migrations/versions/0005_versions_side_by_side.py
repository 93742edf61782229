"""Versions of products side by side: which one Dagster holds, and tags that name several reference sets"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

PRODUCT_TABLES = (
    "calibrator_files", "images", "backgrounds", "source_lists", "psfs", "world_coordinates", "zero_points", "refs",
    "differences", "detection_lists", "cutouts", "measurement_sets", "deepscore_sets", "association_sets",
    "forced_photometry_sets", "alert_sets",
)  # fmt: skip


def upgrade() -> None:
    for table in PRODUCT_TABLES:
        column = sa.Column(
            "materialized_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        )
        op.add_column(table, column)
        op.execute(f"UPDATE {table} SET materialized_at = updated_at")  # noqa: S608  (names of our own)
    op.drop_constraint("pk_provenance_tags", "provenance_tags")
    op.create_primary_key("pk_provenance_tags", "provenance_tags", ["tag", "provenance_id"])
    op.create_index(
        "uq_provenance_tags_one_per_process",
        "provenance_tags",
        ["tag", "process"],
        unique=True,
        postgresql_where=sa.text("process <> 'reference'"),
    )


def downgrade() -> None:
    op.drop_index("uq_provenance_tags_one_per_process", "provenance_tags")
    op.execute(
        "DELETE FROM provenance_tags a USING provenance_tags b "
        "WHERE a.tag = b.tag AND a.process = b.process AND a.provenance_id > b.provenance_id"
    )
    op.drop_constraint("pk_provenance_tags", "provenance_tags")
    op.create_primary_key("pk_provenance_tags", "provenance_tags", ["tag", "process"])
    for table in PRODUCT_TABLES:
        op.drop_column(table, "materialized_at")
