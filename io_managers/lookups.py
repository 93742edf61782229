"""Inputs that the data choose: masters by date; images for a reference, and that of an image, in `references`."""

from collections.abc import Sequence

import sqlalchemy as sa

from io_managers.external_masters import external_provenance
from io_managers.references import ReferenceStore
from seechange_assets.errors import AmbiguousMaster, MasterNotFound
from seechange_assets.products import ImageInfo, Master
from sql.models import ExposureRow, MasterRow

#: Kinds of master that hold for one filter, and dates that count as the same [day].
_BY_FILTER, _SAME_TIME_DAYS = ("flat", "fringe", "illumination"), 1e-6


class SurveyStore(ReferenceStore):
    """A `ProductStore` that also finds what the data choose: masters here, references in its base."""

    def calibration_frames(
        self, calibration: str, kind: str, ccd: str | None = None, flat_type: str | None = None
    ) -> Sequence[str]:
        """Keys of the exposures of one kind in a calibration run, in time order.

        Parameters
        ----------
        calibration : a night, or ``night.filter`` for one filter of it (then `ccd` is needed).
        kind : ``bias``, ``dark``, ``flat`` or ``science``.
        ccd : only exposures with this CCD.
        flat_type : only flats of this type.
        """
        night, _, name = calibration.partition(".")
        query = (
            sa.select(ExposureRow.key)
            .where(ExposureRow.night == night, ExposureRow.kind == kind)
            .where(ExposureRow.instrument == self.instrument, ExposureRow.bitflag == 0)
            .order_by(ExposureRow.mjd, ExposureRow.key)
        )
        if ccd is not None:
            query = query.where(ExposureRow.filters.has_key(ccd))
        if name:
            query = query.where(ExposureRow.filters[ccd].astext == name)
        if flat_type is not None:
            query = query.where(ExposureRow.flat_type == flat_type)
        with self.database.session() as session:
            return session.scalars(query).all()

    def master(
        self, kind: str, info: ImageInfo, calibration_set: str = "any", flat_type: str = "any"
    ) -> tuple[str, Master]:
        """(identifier, master) valid for this image: the nearest in time.

        Parameters
        ----------
        kind : ``bias``, ``dark``, ``flat``, ``fringe`` or ``illumination``.
        info : date, CCD, instrument and filter of the image.
        calibration_set : ``nightly`` (made of exposures under the current recipe), ``external``, or ``any``.
        flat_type : ``dome``, ``twilight``, ``sky`` or ``any``; for flats.

        Raises
        ------
        MasterNotFound
            None is valid at the date of the image, for its CCD and (where it matters) its filter.
        AmbiguousMaster
            Several fit, and neither set, type nor date chooses.
        """
        rows = self._valid_masters(kind, info, calibration_set, flat_type)
        what = f"master {kind} on MJD {info.mjd:.5f} for CCD {info.ccd}"
        what += f" in filter {info.filter}" if kind in _BY_FILTER else ""
        if not rows:
            raise MasterNotFound(
                f"no {what} is valid; ingest {kind} frames of a night within the validity, or register a file",
                waits_for=f"master_{kind}//{info.ccd}",
            )
        for column, parameter in (("calibration_set", "image.master_set"), ("flat_type", "image.flat_type")):
            choices = sorted({getattr(row, column) for row in rows})
            if len(choices) > 1:
                listed = ", ".join(choice or "none" for choice in choices)
                raise AmbiguousMaster(f"{what}: {column} may be {listed}: choose one by {parameter}")
        distances = [abs((row.valid_from + row.valid_to) / 2 - info.mjd) for row in rows]
        nearest = [row for row, d in zip(rows, distances, strict=True) if d - min(distances) < _SAME_TIME_DAYS]
        if len(nearest) > 1:
            names = ", ".join(row.partition for row in nearest)
            raise AmbiguousMaster(f"{what}: {names} fit equally well: narrow their ranges of validity")
        return f"{nearest[0].partition}/{nearest[0].provenance_id}", self.load_row(nearest[0])

    def _valid_masters(self, kind: str, info: ImageInfo, calibration_set: str, flat_type: str) -> Sequence[MasterRow]:
        ids = [external_provenance(kind).id]
        if f"master_{kind}" in self.recipes:
            ids.append(self.recipes[f"master_{kind}"].id)
        query = sa.select(MasterRow).where(
            MasterRow.kind == kind,
            MasterRow.ccd == info.ccd,
            MasterRow.instrument == info.instrument,
            MasterRow.provenance_id.in_(ids),
            MasterRow.valid_from <= info.mjd,
            MasterRow.valid_to >= info.mjd,
            MasterRow.bitflag == 0,
        )
        if kind in _BY_FILTER:
            query = query.where(MasterRow.filter == info.filter)
        if calibration_set != "any":
            query = query.where(MasterRow.calibration_set == calibration_set)
        if kind == "flat" and flat_type != "any":
            query = query.where(MasterRow.flat_type == flat_type)
        with self.database.session() as session:
            return session.scalars(query.order_by(MasterRow.partition)).all()
