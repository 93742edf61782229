"""Exposures held back, and exposures whose runs have been requested"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "exposure_holds",
        sa.Column("exposure", sa.String(80), nullable=False),
        sa.Column("reason", sa.String(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["exposure"], ["exposures.key"], name="fk_exposure_holds_exposure", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("exposure", name="pk_exposure_holds"),
    )
    op.create_table(
        "exposure_claims",
        sa.Column("exposure", sa.String(80), nullable=False),
        sa.Column("tick", sa.String(32), nullable=False),
        sa.Column("is_confirmed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["exposure"], ["exposures.key"], name="fk_exposure_claims_exposure", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("exposure", name="pk_exposure_claims"),
    )
    op.create_index("ix_exposure_claims_tick", "exposure_claims", ["tick"])
    op.create_index("ix_exposure_claims_expires_at", "exposure_claims", ["expires_at"])
    # What was processed before had been requested; of the rest, Dagster knows by the runs' keys what it has already.
    op.execute(
        "INSERT INTO exposure_claims (exposure, tick, is_confirmed, expires_at) "
        "SELECT key, '', true, now() FROM exposures WHERE kind = 'science' "
        "AND EXISTS (SELECT 1 FROM reports WHERE reports.partition = exposures.key)"
    )


def downgrade() -> None:
    op.drop_table("exposure_claims")
    op.drop_table("exposure_holds")
