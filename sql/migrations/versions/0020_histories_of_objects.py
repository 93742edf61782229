"""Covariances of mean positions, merged and split objects, identified measurements, cross-matches"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0010"
branch_labels = None
depends_on = None

JSONB = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    op.add_column("objects", sa.Column("mean_ra_dec_cov", sa.Double(), nullable=True))
    op.add_column("objects", sa.Column("merged_into", sa.UUID(), nullable=True))
    op.create_foreign_key(op.f("fk_objects_merged_into"), "objects", "objects", ["merged_into"], ["id"])
    op.create_table(
        "object_changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("object_id", sa.UUID(), nullable=False),
        sa.Column("other_id", sa.UUID(), nullable=False),
        sa.Column("measurements", JSONB, nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name=op.f("fk_object_changes_object_id")),
        sa.ForeignKeyConstraint(["other_id"], ["objects.id"], name=op.f("fk_object_changes_other_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_object_changes")),
    )
    op.create_table(
        "identifications",
        sa.Column("measurement_id", sa.UUID(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("ra", sa.Double(), nullable=False),
        sa.Column("dec", sa.Double(), nullable=False),
        sa.Column("separation_arcsec", sa.Double(), nullable=False),
        sa.Column("mag", sa.Double(), nullable=True),
        sa.Column("catalog", sa.String(length=120), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["measurement_id"], ["measurements.id"], name=op.f("fk_identifications_measurement_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("measurement_id", name=op.f("pk_identifications")),
    )
    op.create_index(op.f("ix_identifications_name"), "identifications", ["name"], unique=False)
    op.create_table(
        "object_cross_matches",
        sa.Column("object_id", sa.UUID(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("catalog", sa.String(length=120), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=True),
        sa.Column("ra", sa.Double(), nullable=True),
        sa.Column("dec", sa.Double(), nullable=True),
        sa.Column("separation_arcsec", sa.Double(), nullable=True),
        sa.Column("mag", sa.Double(), nullable=True),
        sa.Column("star_score", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["object_id"], ["objects.id"], name=op.f("fk_object_cross_matches_object_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("object_id", "kind", "rank", name=op.f("pk_object_cross_matches")),
    )


def downgrade() -> None:
    op.drop_table("object_cross_matches")
    op.drop_table("identifications")
    op.drop_table("object_changes")
    op.drop_constraint("fk_objects_merged_into", "objects")
    op.drop_column("objects", "merged_into")
    op.drop_column("objects", "mean_ra_dec_cov")
