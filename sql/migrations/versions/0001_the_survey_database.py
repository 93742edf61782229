"""The survey database"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # In order of the foreign keys.
    _create_object_name_max_used()
    _create_provenances()
    _create_rejected_files()
    _create_reports()
    _create_alert_sets()
    _create_alerts_outbox()
    _create_association_sets()
    _create_backgrounds()
    _create_calibrator_files()
    _create_cutouts()
    _create_deepscore_sets()
    _create_detection_lists()
    _create_exposures()
    _create_forced_photometry_sets()
    _create_images()
    _create_measurement_sets()
    _create_objects()
    _create_provenance_tags()
    _create_provenance_upstreams()
    _create_psfs()
    _create_refs()
    _create_source_lists()
    _create_world_coordinates()
    _create_zero_points()
    _create_differences()
    _create_forced_photometry()
    _create_measurements()


def downgrade() -> None:
    # PostgreSQL drops a table's indexes with it.
    for table in (
        "measurements",
        "forced_photometry",
        "differences",
        "zero_points",
        "world_coordinates",
        "source_lists",
        "refs",
        "psfs",
        "provenance_upstreams",
        "provenance_tags",
        "objects",
        "measurement_sets",
        "images",
        "forced_photometry_sets",
        "exposures",
        "detection_lists",
        "deepscore_sets",
        "cutouts",
        "calibrator_files",
        "backgrounds",
        "association_sets",
        "alerts_outbox",
        "alert_sets",
        "reports",
        "rejected_files",
        "provenances",
        "object_name_max_used",
    ):
        op.drop_table(table)


def _create_object_name_max_used() -> None:
    op.create_table(
        "object_name_max_used",
        sa.Column("year", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("maxnum", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("year", name=op.f("pk_object_name_max_used")),
    )


def _create_provenances() -> None:
    op.create_table(
        "provenances",
        sa.Column("id", sa.String(length=20), nullable=False),
        sa.Column("process", sa.String(), nullable=False),
        sa.Column("algorithm_version", sa.String(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_provenances")),
    )
    op.create_index(op.f("ix_provenances_process"), "provenances", ["process"], unique=False)


def _create_rejected_files() -> None:
    op.create_table(
        "rejected_files",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("error", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_rejected_files")),
    )


def _create_reports() -> None:
    op.create_table(
        "reports",
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("step", sa.String(length=32), nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("waits_for", sa.String(length=200), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("message", sa.String(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("cpu_seconds", sa.Double(), nullable=True),
        sa.Column("process_cpu_seconds", sa.Double(), nullable=True),
        sa.Column("peak_rss_mb", sa.Double(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("partition", "ccd", "step", name=op.f("pk_reports")),
    )
    op.create_index(op.f("ix_reports_outcome"), "reports", ["outcome"], unique=False)
    op.create_index(op.f("ix_reports_waits_for"), "reports", ["waits_for"], unique=False)


def _create_alert_sets() -> None:
    op.create_table(
        "alert_sets",
        sa.Column("n_alerts", sa.Integer(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_alert_sets_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_sets")),
        sa.UniqueConstraint("filepath", name=op.f("uq_alert_sets_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_alert_sets_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_alert_sets_provenance_id"), "alert_sets", ["provenance_id"], unique=False)


def _create_alerts_outbox() -> None:
    op.create_table(
        "alerts_outbox",
        sa.Column("alert_id", sa.UUID(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("measurement_id", sa.UUID(), nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("exposure", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("topic", sa.String(length=80), nullable=False),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("schema_name", sa.String(length=32), nullable=False),
        sa.Column("packet", sa.LargeBinary(), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.Column("broker_partition", sa.Integer(), nullable=True),
        sa.Column("broker_offset", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_alerts_outbox_provenance_id")),
        sa.PrimaryKeyConstraint("alert_id", name=op.f("pk_alerts_outbox")),
        sa.UniqueConstraint("measurement_id", "topic", name=op.f("uq_alerts_outbox_measurement_id_topic")),
        sa.UniqueConstraint("sequence", name=op.f("uq_alerts_outbox_sequence")),
    )
    op.create_index("ix_alerts_outbox_partition", "alerts_outbox", ["exposure", "ccd"], unique=False)
    op.create_index(op.f("ix_alerts_outbox_provenance_id"), "alerts_outbox", ["provenance_id"], unique=False)
    op.create_index(op.f("ix_alerts_outbox_topic"), "alerts_outbox", ["topic"], unique=False)
    op.create_index(
        "ix_alerts_outbox_unsent",
        "alerts_outbox",
        ["sequence"],
        unique=False,
        postgresql_where=sa.text("sent_at IS NULL"),
    )


def _create_association_sets() -> None:
    op.create_table(
        "association_sets",
        sa.Column("n_associated", sa.Integer(), nullable=False),
        sa.Column("n_new_objects", sa.Integer(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_association_sets_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_association_sets")),
        sa.UniqueConstraint("filepath", name=op.f("uq_association_sets_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_association_sets_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_association_sets_provenance_id"), "association_sets", ["provenance_id"], unique=False)


def _create_backgrounds() -> None:
    op.create_table(
        "backgrounds",
        sa.Column("level", sa.Double(), nullable=False),
        sa.Column("rms", sa.Double(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_backgrounds_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backgrounds")),
        sa.UniqueConstraint("filepath", name=op.f("uq_backgrounds_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_backgrounds_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_backgrounds_provenance_id"), "backgrounds", ["provenance_id"], unique=False)


def _create_calibrator_files() -> None:
    op.create_table(
        "calibrator_files",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("instrument", sa.String(length=32), nullable=False),
        sa.Column("filter", sa.String(length=32), nullable=False),
        sa.Column("valid_from", sa.Double(), nullable=False),
        sa.Column("valid_to", sa.Double(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_calibrator_files_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calibrator_files")),
        sa.UniqueConstraint("filepath", name=op.f("uq_calibrator_files_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_calibrator_files_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_calibrator_files_provenance_id"), "calibrator_files", ["provenance_id"], unique=False)


def _create_cutouts() -> None:
    op.create_table(
        "cutouts",
        sa.Column("n_cutouts", sa.Integer(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_cutouts_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cutouts")),
        sa.UniqueConstraint("filepath", name=op.f("uq_cutouts_filepath")),
        sa.UniqueConstraint("partition", "ccd", "provenance_id", name=op.f("uq_cutouts_partition_ccd_provenance_id")),
    )
    op.create_index(op.f("ix_cutouts_provenance_id"), "cutouts", ["provenance_id"], unique=False)


def _create_deepscore_sets() -> None:
    op.create_table(
        "deepscore_sets",
        sa.Column("algorithm", sa.String(), nullable=False),
        sa.Column("n_real", sa.Integer(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_deepscore_sets_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deepscore_sets")),
        sa.UniqueConstraint("filepath", name=op.f("uq_deepscore_sets_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_deepscore_sets_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_deepscore_sets_provenance_id"), "deepscore_sets", ["provenance_id"], unique=False)


def _create_detection_lists() -> None:
    op.create_table(
        "detection_lists",
        sa.Column("n_detections", sa.Integer(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_detection_lists_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_detection_lists")),
        sa.UniqueConstraint("filepath", name=op.f("uq_detection_lists_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_detection_lists_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_detection_lists_provenance_id"), "detection_lists", ["provenance_id"], unique=False)


def _create_exposures() -> None:
    op.create_table(
        "exposures",
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("sequence", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("instrument", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("night", sa.String(length=10), nullable=False),
        sa.Column("mjd", sa.Double(), nullable=False),
        sa.Column("exptime_s", sa.Double(), nullable=False),
        sa.Column("ra_deg", sa.Double(), nullable=True),
        sa.Column("dec_deg", sa.Double(), nullable=True),
        sa.Column("healpix", sa.BigInteger(), nullable=True),
        sa.Column("airmass", sa.Double(), nullable=True),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("field", sa.String(length=80), nullable=False),
        sa.Column("filters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_exposures_provenance_id")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_exposures")),
        sa.UniqueConstraint("filepath", name=op.f("uq_exposures_filepath")),
        sa.UniqueConstraint("sequence", name=op.f("uq_exposures_sequence")),
    )
    op.create_index(op.f("ix_exposures_field"), "exposures", ["field"], unique=False)
    op.create_index(op.f("ix_exposures_healpix"), "exposures", ["healpix"], unique=False)
    op.create_index(op.f("ix_exposures_instrument"), "exposures", ["instrument"], unique=False)
    op.create_index(op.f("ix_exposures_kind"), "exposures", ["kind"], unique=False)
    op.create_index(op.f("ix_exposures_mjd"), "exposures", ["mjd"], unique=False)
    op.create_index(op.f("ix_exposures_night"), "exposures", ["night"], unique=False)
    op.create_index(op.f("ix_exposures_project"), "exposures", ["project"], unique=False)


def _create_forced_photometry_sets() -> None:
    op.create_table(
        "forced_photometry_sets",
        sa.Column("n_objects", sa.Integer(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["provenance_id"], ["provenances.id"], name=op.f("fk_forced_photometry_sets_provenance_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_forced_photometry_sets")),
        sa.UniqueConstraint("filepath", name=op.f("uq_forced_photometry_sets_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_forced_photometry_sets_partition_ccd_provenance_id")
        ),
    )
    op.create_index(
        op.f("ix_forced_photometry_sets_provenance_id"), "forced_photometry_sets", ["provenance_id"], unique=False
    )


def _create_images() -> None:
    op.create_table(
        "images",
        sa.Column("instrument", sa.String(length=32), nullable=False),
        sa.Column("field", sa.String(length=80), nullable=False),
        sa.Column("filter", sa.String(length=32), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("mjd", sa.Double(), nullable=False),
        sa.Column("exptime_s", sa.Double(), nullable=False),
        sa.Column("airmass", sa.Double(), nullable=True),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_images_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
        sa.UniqueConstraint("filepath", name=op.f("uq_images_filepath")),
        sa.UniqueConstraint("partition", "ccd", "provenance_id", name=op.f("uq_images_partition_ccd_provenance_id")),
    )
    op.create_index(op.f("ix_images_field"), "images", ["field"], unique=False)
    op.create_index(op.f("ix_images_mjd"), "images", ["mjd"], unique=False)
    op.create_index(op.f("ix_images_provenance_id"), "images", ["provenance_id"], unique=False)


def _create_measurement_sets() -> None:
    op.create_table(
        "measurement_sets",
        sa.Column("n_measurements", sa.Integer(), nullable=False),
        sa.Column("n_good", sa.Integer(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_measurement_sets_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurement_sets")),
        sa.UniqueConstraint("filepath", name=op.f("uq_measurement_sets_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_measurement_sets_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_measurement_sets_provenance_id"), "measurement_sets", ["provenance_id"], unique=False)


def _create_objects() -> None:
    op.create_table(
        "objects",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("ra", sa.Double(), nullable=False),
        sa.Column("dec", sa.Double(), nullable=False),
        sa.Column("healpix", sa.BigInteger(), nullable=False),
        sa.Column("mean_ra", sa.Double(), nullable=False),
        sa.Column("mean_dec", sa.Double(), nullable=False),
        sa.Column("mean_ra_err", sa.Double(), nullable=True),
        sa.Column("mean_dec_err", sa.Double(), nullable=True),
        sa.Column("n_detections", sa.Integer(), server_default="0", nullable=False),
        sa.Column("first_mjd", sa.Double(), nullable=False),
        sa.Column("last_mjd", sa.Double(), nullable=False),
        sa.Column("is_test", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("is_fake", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("is_bad", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("exposure", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_objects_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_objects")),
        sa.UniqueConstraint("name", name=op.f("uq_objects_name")),
    )
    op.create_index(op.f("ix_objects_healpix"), "objects", ["healpix"], unique=False)


def _create_provenance_tags() -> None:
    op.create_table(
        "provenance_tags",
        sa.Column("tag", sa.String(length=80), nullable=False),
        sa.Column("process", sa.String(), nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_provenance_tags_provenance_id")),
        sa.PrimaryKeyConstraint("tag", "process", name=op.f("pk_provenance_tags")),
    )


def _create_provenance_upstreams() -> None:
    op.create_table(
        "provenance_upstreams",
        sa.Column("downstream_id", sa.String(length=20), nullable=False),
        sa.Column("upstream_id", sa.String(length=20), nullable=False),
        sa.ForeignKeyConstraint(
            ["downstream_id"], ["provenances.id"], name=op.f("fk_provenance_upstreams_downstream_id")
        ),
        sa.ForeignKeyConstraint(["upstream_id"], ["provenances.id"], name=op.f("fk_provenance_upstreams_upstream_id")),
        sa.PrimaryKeyConstraint("downstream_id", "upstream_id", name=op.f("pk_provenance_upstreams")),
    )


def _create_psfs() -> None:
    op.create_table(
        "psfs",
        sa.Column("fwhm_px", sa.Double(), nullable=False),
        sa.Column("n_stars", sa.Integer(), nullable=False),
        sa.Column("form", sa.String(), nullable=False),
        sa.Column("chi2", sa.Double(), nullable=True),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_psfs_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_psfs")),
        sa.UniqueConstraint("filepath", name=op.f("uq_psfs_filepath")),
        sa.UniqueConstraint("partition", "ccd", "provenance_id", name=op.f("uq_psfs_partition_ccd_provenance_id")),
    )
    op.create_index(op.f("ix_psfs_provenance_id"), "psfs", ["provenance_id"], unique=False)


def _create_refs() -> None:
    op.create_table(
        "refs",
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("instrument", sa.String(length=32), nullable=False),
        sa.Column("field", sa.String(length=80), nullable=False),
        sa.Column("filter", sa.String(length=32), nullable=False),
        sa.Column("limiting_magnitude", sa.Double(), nullable=False),
        sa.Column("fwhm_px", sa.Double(), nullable=False),
        sa.Column("ra_deg", sa.Double(), nullable=False),
        sa.Column("dec_deg", sa.Double(), nullable=False),
        sa.Column("corners", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("healpix", sa.BigInteger(), nullable=False),
        sa.Column("members", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_refs_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refs")),
        sa.UniqueConstraint("filepath", name=op.f("uq_refs_filepath")),
        sa.UniqueConstraint("partition", "ccd", "provenance_id", name=op.f("uq_refs_partition_ccd_provenance_id")),
    )
    op.create_index(op.f("ix_refs_healpix"), "refs", ["healpix"], unique=False)
    op.create_index(op.f("ix_refs_name"), "refs", ["name"], unique=False)
    op.create_index(op.f("ix_refs_provenance_id"), "refs", ["provenance_id"], unique=False)


def _create_source_lists() -> None:
    op.create_table(
        "source_lists",
        sa.Column("n_sources", sa.Integer(), nullable=False),
        sa.Column("n_stars", sa.Integer(), nullable=False),
        sa.Column("fwhm_px", sa.Double(), nullable=True),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_source_lists_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_source_lists")),
        sa.UniqueConstraint("filepath", name=op.f("uq_source_lists_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_source_lists_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_source_lists_provenance_id"), "source_lists", ["provenance_id"], unique=False)


def _create_world_coordinates() -> None:
    op.create_table(
        "world_coordinates",
        sa.Column("n_matched", sa.Integer(), nullable=False),
        sa.Column("residual_ra_mas", sa.Double(), nullable=False),
        sa.Column("residual_dec_mas", sa.Double(), nullable=False),
        sa.Column("ra_deg", sa.Double(), nullable=False),
        sa.Column("dec_deg", sa.Double(), nullable=False),
        sa.Column("corners", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("healpix", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_world_coordinates_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_world_coordinates")),
        sa.UniqueConstraint("filepath", name=op.f("uq_world_coordinates_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_world_coordinates_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_world_coordinates_healpix"), "world_coordinates", ["healpix"], unique=False)
    op.create_index(op.f("ix_world_coordinates_provenance_id"), "world_coordinates", ["provenance_id"], unique=False)


def _create_zero_points() -> None:
    op.create_table(
        "zero_points",
        sa.Column("zp", sa.Double(), nullable=False),
        sa.Column("zp_err", sa.Double(), nullable=False),
        sa.Column("scatter", sa.Double(), nullable=False),
        sa.Column("n_stars", sa.Integer(), nullable=False),
        sa.Column("limiting_magnitude", sa.Double(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_zero_points_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_zero_points")),
        sa.UniqueConstraint("filepath", name=op.f("uq_zero_points_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_zero_points_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_zero_points_provenance_id"), "zero_points", ["provenance_id"], unique=False)


def _create_differences() -> None:
    op.create_table(
        "differences",
        sa.Column("reference_id", sa.UUID(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("mjd", sa.Double(), nullable=False),
        sa.Column("filter", sa.String(length=32), nullable=False),
        sa.Column("limiting_magnitude", sa.Double(), nullable=True),
        sa.Column("ra_deg", sa.Double(), nullable=False),
        sa.Column("dec_deg", sa.Double(), nullable=False),
        sa.Column("corners", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("healpix", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("partition", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("filepath", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("summary", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("bitflag", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_differences_provenance_id")),
        sa.ForeignKeyConstraint(["reference_id"], ["refs.id"], name=op.f("fk_differences_reference_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_differences")),
        sa.UniqueConstraint("filepath", name=op.f("uq_differences_filepath")),
        sa.UniqueConstraint(
            "partition", "ccd", "provenance_id", name=op.f("uq_differences_partition_ccd_provenance_id")
        ),
    )
    op.create_index(op.f("ix_differences_healpix"), "differences", ["healpix"], unique=False)
    op.create_index(op.f("ix_differences_mjd"), "differences", ["mjd"], unique=False)
    op.create_index(op.f("ix_differences_provenance_id"), "differences", ["provenance_id"], unique=False)


def _create_forced_photometry() -> None:
    op.create_table(
        "forced_photometry",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("object_id", sa.UUID(), nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("exposure", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("mjd_mid", sa.Double(), nullable=False),
        sa.Column("filter", sa.String(length=32), nullable=False),
        sa.Column("ra", sa.Double(), nullable=False),
        sa.Column("dec", sa.Double(), nullable=False),
        sa.Column("x", sa.Double(), nullable=False),
        sa.Column("y", sa.Double(), nullable=False),
        sa.Column("flux_psf", sa.Double(), nullable=True),
        sa.Column("flux_psf_err", sa.Double(), nullable=True),
        sa.Column("flux_njy", sa.Double(), nullable=True),
        sa.Column("flux_njy_err", sa.Double(), nullable=True),
        sa.Column("image_flags", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name=op.f("fk_forced_photometry_object_id")),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_forced_photometry_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_forced_photometry")),
        sa.UniqueConstraint(
            "object_id",
            "exposure",
            "ccd",
            "provenance_id",
            name=op.f("uq_forced_photometry_object_id_exposure_ccd_provenance_id"),
        ),
    )
    op.create_index(op.f("ix_forced_photometry_exposure"), "forced_photometry", ["exposure"], unique=False)
    op.create_index(op.f("ix_forced_photometry_provenance_id"), "forced_photometry", ["provenance_id"], unique=False)


def _create_measurements() -> None:
    op.create_table(
        "measurements",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("provenance_id", sa.String(length=20), nullable=False),
        sa.Column("exposure", sa.String(length=80), nullable=False),
        sa.Column("ccd", sa.String(length=16), nullable=False),
        sa.Column("detection", sa.Integer(), nullable=False),
        sa.Column("object_id", sa.UUID(), nullable=True),
        sa.Column("mjd_mid", sa.Double(), nullable=False),
        sa.Column("exptime_s", sa.Double(), nullable=False),
        sa.Column("filter", sa.String(length=32), nullable=False),
        sa.Column("x", sa.Double(), nullable=True),
        sa.Column("y", sa.Double(), nullable=True),
        sa.Column("x_err", sa.Double(), nullable=True),
        sa.Column("y_err", sa.Double(), nullable=True),
        sa.Column("ra", sa.Double(), nullable=True),
        sa.Column("dec", sa.Double(), nullable=True),
        sa.Column("ra_err", sa.Double(), nullable=True),
        sa.Column("dec_err", sa.Double(), nullable=True),
        sa.Column("ra_dec_cov", sa.Double(), nullable=True),
        sa.Column("healpix", sa.BigInteger(), nullable=True),
        sa.Column("flux_psf", sa.Double(), nullable=True),
        sa.Column("flux_psf_err", sa.Double(), nullable=True),
        sa.Column("flux_njy", sa.Double(), nullable=True),
        sa.Column("flux_njy_err", sa.Double(), nullable=True),
        sa.Column("flux_aper_njy", sa.Double(), nullable=True),
        sa.Column("flux_aper_njy_err", sa.Double(), nullable=True),
        sa.Column("aperture_radius_px", sa.Double(), nullable=True),
        sa.Column("zp", sa.Double(), nullable=False),
        sa.Column("zp_err", sa.Double(), nullable=True),
        sa.Column("snr", sa.Double(), nullable=True),
        sa.Column("chi2", sa.Double(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("score_cut", sa.Double(), nullable=False),
        sa.Column("score_algorithm", sa.String(), nullable=False),
        sa.Column("is_bad", sa.Boolean(), nullable=False),
        sa.Column("bad_reasons", sa.String(), nullable=False),
        sa.Column("diagnostics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["object_id"], ["objects.id"], name=op.f("fk_measurements_object_id")),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances.id"], name=op.f("fk_measurements_provenance_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurements")),
        sa.UniqueConstraint(
            "exposure",
            "ccd",
            "provenance_id",
            "detection",
            name=op.f("uq_measurements_exposure_ccd_provenance_id_detection"),
        ),
    )
    op.create_index(op.f("ix_measurements_healpix"), "measurements", ["healpix"], unique=False)
    op.create_index(op.f("ix_measurements_mjd_mid"), "measurements", ["mjd_mid"], unique=False)
    op.create_index(op.f("ix_measurements_object_id"), "measurements", ["object_id"], unique=False)
    op.create_index(op.f("ix_measurements_provenance_id"), "measurements", ["provenance_id"], unique=False)
