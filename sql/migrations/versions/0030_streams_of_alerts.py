"""Streams of alerts: several messages for an alert, withheld repetitions, times of queueing; container files"""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0020"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
UNSENT = "ix_alerts_outbox_unsent"


def upgrade() -> None:
    for column in (
        sa.Column("stream", sa.String(length=32), server_default="main", nullable=False),
        sa.Column("wire_format", sa.String(length=16), server_default="bare", nullable=False),
        sa.Column("via", sa.String(length=16), server_default="kafka", nullable=False),
        sa.Column("ra", sa.Double(), nullable=True),
        sa.Column("dec", sa.Double(), nullable=True),
        sa.Column("is_withheld", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("queued_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("attempted_at", TIME, nullable=True),
    ):
        op.add_column("alerts_outbox", column)
    op.execute(
        "UPDATE alerts_outbox o SET queued_at = o.created_at, ra = m.ra, dec = m.dec "
        "FROM measurements m WHERE m.id = o.measurement_id"
    )
    # FITS stamps hardly shrink: to try takes longer than to write them.
    op.execute("ALTER TABLE alerts_outbox ALTER COLUMN packet SET STORAGE EXTERNAL")
    op.drop_constraint(op.f("uq_alerts_outbox_measurement_id_topic"), "alerts_outbox")
    op.drop_constraint(op.f("pk_alerts_outbox"), "alerts_outbox")
    op.create_primary_key(op.f("pk_alerts_outbox"), "alerts_outbox", ["alert_id", "stream"])
    op.drop_index(UNSENT, "alerts_outbox")
    where = sa.text("sent_at IS NULL AND NOT is_withheld")
    op.create_index(UNSENT, "alerts_outbox", ["sequence"], postgresql_where=where)
    _create_alert_files()


def _create_alert_files() -> None:
    op.create_table(
        "alert_files",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("n_alerts", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_alert_files_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_files")),
        sa.UniqueConstraint("filepath", name=op.f("uq_alert_files_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_alert_files_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_alert_files_provenance_id"), "alert_files", ["provenance_id"])


def downgrade() -> None:
    op.drop_table("alert_files")
    op.execute("DELETE FROM alerts_outbox WHERE stream <> 'main' OR is_withheld")
    op.drop_index(UNSENT, "alerts_outbox")
    op.create_index(UNSENT, "alerts_outbox", ["sequence"], postgresql_where=sa.text("sent_at IS NULL"))
    op.drop_constraint(op.f("pk_alerts_outbox"), "alerts_outbox")
    op.create_primary_key(op.f("pk_alerts_outbox"), "alerts_outbox", ["alert_id"])
    op.create_unique_constraint(
        op.f("uq_alerts_outbox_measurement_id_topic"), "alerts_outbox", ["measurement_id", "topic"]
    )
    op.execute("ALTER TABLE alerts_outbox ALTER COLUMN packet SET STORAGE EXTENDED")
    for name in ("stream", "wire_format", "via", "ra", "dec", "is_withheld", "queued_at", "attempted_at"):
        op.drop_column("alerts_outbox", name)
