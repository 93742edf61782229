"""Excerpts of star catalogues"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "catalog_excerpts",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("catalog", sa.String(length=80), nullable=False),
        sa.Column("healpix_order", sa.Integer(), nullable=False),
        sa.Column("healpix", sa.BigInteger(), nullable=False),
        sa.Column("max_mag", sa.Double(), nullable=False),
        sa.Column("n_stars", sa.Integer(), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalog_excerpts")),
        sa.UniqueConstraint("filepath", name=op.f("uq_catalog_excerpts_filepath")),
    )


def downgrade() -> None:
    op.drop_table("catalog_excerpts")
