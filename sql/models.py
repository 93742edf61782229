"""Tables of the survey database: exposures, provenances and one row per product."""

import uuid
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from sql.base import Base, CreatedMixin, ProductRow


class ExposureRow(CreatedMixin, Base):
    """A registered raw exposure. ``sequence`` orders registration and is the sensors' cursor."""

    __tablename__ = "exposures"

    key: Mapped[str] = mapped_column(sa.String(80), primary_key=True)
    sequence: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), unique=True)
    instrument: Mapped[str] = mapped_column(sa.String(32), index=True)
    kind: Mapped[str] = mapped_column(sa.String(16), index=True)
    night: Mapped[str] = mapped_column(sa.String(10), index=True)
    mjd: Mapped[float] = mapped_column(index=True)
    exptime_s: Mapped[float]
    ra_deg: Mapped[float | None]
    dec_deg: Mapped[float | None]
    healpix: Mapped[int | None] = mapped_column(sa.BigInteger, index=True)
    airmass: Mapped[float | None]
    target: Mapped[str]
    project: Mapped[str] = mapped_column(index=True)
    field: Mapped[str] = mapped_column(sa.String(80), index=True)
    filters: Mapped[dict[str, Any]]
    filepath: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    n_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    provenance_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"))
    bitflag: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    flat_type: Mapped[str] = mapped_column(sa.String(16), server_default="")


class RejectedFileRow(CreatedMixin, Base):
    """A file the drop directory refused, once per content, with the reason."""

    __tablename__ = "rejected_files"

    sha256: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    name: Mapped[str]
    error: Mapped[str]
    message: Mapped[str]


class ExposureHoldRow(CreatedMixin, Base):
    """An exposure that somebody holds back: nothing is requested for it until it is released."""

    __tablename__ = "exposure_holds"

    exposure: Mapped[str] = mapped_column(sa.ForeignKey("exposures.key", ondelete="CASCADE"), primary_key=True)
    reason: Mapped[str] = mapped_column(server_default="")


class ExposureClaimRow(CreatedMixin, Base):
    """An exposure whose runs a sensor has requested.

    ``tick`` names the evaluation of the sensor that wrote the claim; ``is_confirmed`` is set when Dagster has committed
    that tick, so a claim of a tick that was lost is found and repeated. ``attempt`` counts the requests that were made
    because runs had ended without a word; after ``expires_at`` the unfinished CCDs are looked at (null: never again).
    """

    __tablename__ = "exposure_claims"

    exposure: Mapped[str] = mapped_column(sa.ForeignKey("exposures.key", ondelete="CASCADE"), primary_key=True)
    tick: Mapped[str] = mapped_column(sa.String(32), index=True)
    is_confirmed: Mapped[bool] = mapped_column(server_default=sa.false())
    attempt: Mapped[int] = mapped_column(server_default="0")
    expires_at: Mapped[datetime | None] = mapped_column(index=True)


class ProvenanceRow(CreatedMixin, Base):
    """The recipe of a process; its id is the code version of the asset."""

    __tablename__ = "provenances"

    id: Mapped[str] = mapped_column(sa.String(20), primary_key=True)
    process: Mapped[str] = mapped_column(index=True)
    algorithm_version: Mapped[str]
    parameters: Mapped[dict[str, Any]]


class ProvenanceUpstreamRow(Base):
    """Which recipes feed which."""

    __tablename__ = "provenance_upstreams"

    downstream_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"), primary_key=True)
    upstream_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"), primary_key=True)


class ProvenanceTagRow(CreatedMixin, Base):
    """A tag names one provenance per process; of references any number, one for each set."""

    __tablename__ = "provenance_tags"
    __table_args__ = (
        sa.Index(
            "uq_provenance_tags_one_per_process",
            "tag",
            "process",
            unique=True,
            postgresql_where=sa.text("process <> 'reference'"),
        ),
    )

    tag: Mapped[str] = mapped_column(sa.String(80), primary_key=True)
    process: Mapped[str]
    provenance_id: Mapped[str] = mapped_column(sa.ForeignKey("provenances.id"), primary_key=True)


class MasterRow(ProductRow, Base):
    """Master calibration frames with their range of validity."""

    __tablename__ = "calibrator_files"

    kind: Mapped[str] = mapped_column(sa.String(16))
    instrument: Mapped[str] = mapped_column(sa.String(32))
    filter: Mapped[str] = mapped_column(sa.String(32))
    valid_from: Mapped[float]
    valid_to: Mapped[float]
    flat_type: Mapped[str] = mapped_column(sa.String(16), server_default="")
    calibration_set: Mapped[str] = mapped_column(sa.String(16), server_default="nightly")


class ImageRow(ProductRow, Base):
    """Calibrated images. Position and corners are those of the header's WCS."""

    __tablename__ = "images"

    instrument: Mapped[str] = mapped_column(sa.String(32))
    field: Mapped[str] = mapped_column(sa.String(80), index=True)
    filter: Mapped[str] = mapped_column(sa.String(32))
    project: Mapped[str]
    target: Mapped[str]
    mjd: Mapped[float] = mapped_column(index=True)
    exptime_s: Mapped[float]
    airmass: Mapped[float | None]


class BackgroundRow(ProductRow, Base):
    """Sky levels."""

    __tablename__ = "backgrounds"

    level: Mapped[float]
    rms: Mapped[float]


class SourceListRow(ProductRow, Base):
    """Source catalogues."""

    __tablename__ = "source_lists"

    n_sources: Mapped[int]
    n_stars: Mapped[int]
    fwhm_px: Mapped[float | None]


class PsfRow(ProductRow, Base):
    """Point spread functions."""

    __tablename__ = "psfs"

    fwhm_px: Mapped[float]
    n_stars: Mapped[int]
    form: Mapped[str]
    chi2: Mapped[float | None]


class WcsRow(ProductRow, Base):
    """Astrometric solutions, with the footprint they give the image."""

    __tablename__ = "world_coordinates"

    n_matched: Mapped[int]
    residual_ra_mas: Mapped[float]
    residual_dec_mas: Mapped[float]
    ra_deg: Mapped[float]
    dec_deg: Mapped[float]
    corners: Mapped[dict[str, Any]]
    healpix: Mapped[int] = mapped_column(sa.BigInteger, index=True)


class ZeroPointRow(ProductRow, Base):
    """Photometric zero points. Sensors look for new ones by `materialized_at`."""

    __tablename__ = "zero_points"

    materialized_at: Mapped[datetime] = mapped_column(server_default=sa.func.now(), index=True)
    zp: Mapped[float]
    zp_err: Mapped[float]
    scatter: Mapped[float]
    n_stars: Mapped[int]
    limiting_magnitude: Mapped[float]


class ReferenceRow(ProductRow, Base):
    """Reference images; ``partition`` is ``field.filter``."""

    __tablename__ = "refs"

    name: Mapped[str] = mapped_column(sa.String(80), index=True)
    instrument: Mapped[str] = mapped_column(sa.String(32))
    field: Mapped[str] = mapped_column(sa.String(80))
    filter: Mapped[str] = mapped_column(sa.String(32))
    limiting_magnitude: Mapped[float]
    fwhm_px: Mapped[float]
    ra_deg: Mapped[float]
    dec_deg: Mapped[float]
    corners: Mapped[dict[str, Any]]
    healpix: Mapped[int] = mapped_column(sa.BigInteger, index=True)
    members: Mapped[list[str]]


class DifferenceRow(ProductRow, Base):
    """Difference images."""

    __tablename__ = "differences"

    reference_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("refs.id"))
    method: Mapped[str]
    mjd: Mapped[float] = mapped_column(index=True)
    filter: Mapped[str] = mapped_column(sa.String(32))
    limiting_magnitude: Mapped[float | None]
    ra_deg: Mapped[float]
    dec_deg: Mapped[float]
    corners: Mapped[dict[str, Any]]
    healpix: Mapped[int] = mapped_column(sa.BigInteger, index=True)


class DetectionsRow(ProductRow, Base):
    """Detections on a difference."""

    __tablename__ = "detection_lists"

    n_detections: Mapped[int]


class CutoutsRow(ProductRow, Base):
    """Stamps."""

    __tablename__ = "cutouts"

    n_cutouts: Mapped[int]


class MeasurementSetRow(ProductRow, Base):
    """Measurements of one difference."""

    __tablename__ = "measurement_sets"

    n_measurements: Mapped[int]
    n_good: Mapped[int]


class ScoreSetRow(ProductRow, Base):
    """Real/bogus scores of one measurement set."""

    __tablename__ = "deepscore_sets"

    algorithm: Mapped[str]
    n_real: Mapped[int]


class AssociationSetRow(ProductRow, Base):
    """Which kept measurements belong to which objects."""

    __tablename__ = "association_sets"

    n_associated: Mapped[int]
    n_new_objects: Mapped[int]


class ForcedPhotometrySetRow(ProductRow, Base):
    """Forced photometry of one difference."""

    __tablename__ = "forced_photometry_sets"

    n_objects: Mapped[int]


class AlertSetRow(ProductRow, Base):
    """Alerts committed for one partition."""

    __tablename__ = "alert_sets"

    n_alerts: Mapped[int]


class CatalogExcerptRow(CreatedMixin, Base):
    """Excerpts of a remote star catalogue: the stars of one nested HEALPix cell down to ``max_mag``."""

    __tablename__ = "catalog_excerpts"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    catalog: Mapped[str] = mapped_column(sa.String(80))
    healpix_order: Mapped[int]
    healpix: Mapped[int] = mapped_column(sa.BigInteger)
    max_mag: Mapped[float]
    n_stars: Mapped[int]
    filepath: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    n_bytes: Mapped[int] = mapped_column(sa.BigInteger)


class ReportRow(Base):
    """How the newest attempt at a step of a partition ended.

    ``outcome``: ``computed``, ``waiting`` (for what ``waits_for`` names) or ``failed``.
    """

    __tablename__ = "reports"

    partition: Mapped[str] = mapped_column(sa.String(80), primary_key=True)
    ccd: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    step: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    provenance_id: Mapped[str] = mapped_column(sa.String(20))
    outcome: Mapped[str] = mapped_column(sa.String(16), index=True)
    waits_for: Mapped[str | None] = mapped_column(sa.String(200), index=True)
    error: Mapped[str | None]
    message: Mapped[str | None]
    run_id: Mapped[str | None]
    seconds: Mapped[float | None]
    cpu_seconds: Mapped[float | None]
    process_cpu_seconds: Mapped[float | None]
    peak_rss_mb: Mapped[float | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class FlagChangeRow(CreatedMixin, Base):
    """What somebody said of a product: flags set and cleared, and why. ``ccd`` is empty for a raw exposure."""

    __tablename__ = "flag_changes"
    __table_args__ = (sa.Index("ix_flag_changes_partition", "partition", "ccd"),)

    number: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    product: Mapped[str] = mapped_column(sa.String(32))
    partition: Mapped[str] = mapped_column(sa.String(80))
    ccd: Mapped[str] = mapped_column(sa.String(16))
    provenance_id: Mapped[str] = mapped_column(sa.String(20))
    set_flags: Mapped[list[str]]
    cleared_flags: Mapped[list[str]]
    reason: Mapped[str] = mapped_column(server_default="")


#: Product (asset) name -> the table of its rows.
PRODUCT_ROWS: dict[str, type[ProductRow]] = {
    "master_bias": MasterRow,
    "master_dark": MasterRow,
    "master_flat": MasterRow,
    "master_fringe": MasterRow,
    "image": ImageRow,
    "background": BackgroundRow,
    "sources": SourceListRow,
    "psf": PsfRow,
    "wcs": WcsRow,
    "zp": ZeroPointRow,
    "reference": ReferenceRow,
    "diff": DifferenceRow,
    "detections": DetectionsRow,
    "cutouts": CutoutsRow,
    "measurements": MeasurementSetRow,
    "scores": ScoreSetRow,
    "associations": AssociationSetRow,
    "forced_photometry": ForcedPhotometrySetRow,
    "alerts": AlertSetRow,
}
