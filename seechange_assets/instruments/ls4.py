"""LS4: 32 CCDs of 2048 x 4096 pixels at 1 arcsec/pixel behind a mosaic of g, r, i, z filters.

A raw file is a primary header and one 16-bit extension per CCD (``CCD01`` ... ``CCD32``).
What is not public (gain, read noise, saturation, non-linearity, layout on the sky) is a
documented assumption here and overridden by the header where it has the keyword.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from seechange_assets.errors import BadExposure
from seechange_assets.instruments.base import Amplifier, Instrument, RawCcd
from seechange_assets.instruments.decam import GAIA_COLORS
from seechange_assets.instruments.headers import (
    Keywords,
    check_complete,
    clean_text,
    exposure_key,
    field_name,
    image_shape,
    night_of,
    open_fits,
    read_pixels,
    wcs_text,
)
from seechange_assets.products import ExposureInfo, ImageInfo, header_text

if TYPE_CHECKING:
    from astropy.io.fits import HDUList, Header


class Ls4(Instrument):
    """The LS4 camera on the ESO 1.0-m Schmidt telescope, La Silla.

    Layout of a raw extension, in columns: amplifier A (left half of the CCD), amplifier B
    (right half), the overscan of A, the overscan of B. Sections in the header
    (``DATASECA``, ``BIASSECA``, ...) override it.

    CCDs form `grid` rows and columns; number 1 is north-east, counting runs west, then south.
    Pixels run east to west in x (smaller right ascension at larger x) and south to north in y.
    """

    name = "ls4"
    telescope = "ESO 1.0-m Schmidt"
    site = (-70.7346, -29.2543, 2347.0)
    ccds = tuple(f"{number:02d}" for number in range(1, 33))
    ccd_shape = (4096, 2048)
    pixel_scale_arcsec = 1.0
    filters = ("g", "r", "i", "z")
    #: Red light alone interferes in the silicon; there is one filter in front of each CCD.
    skip_by_filter: ClassVar[dict[str, tuple[str, ...]]] = {"g": ("fringe",), "r": ("fringe",)}
    filter_by_ccd = True
    #: The filters resemble DECam's.
    gaia_colors: ClassVar[dict[str, tuple[float, ...]]] = GAIA_COLORS

    #: Rows and columns of CCDs, and the gap between them.
    grid: ClassVar[tuple[int, int]] = (4, 8)
    gap_px: ClassVar[int] = 40
    #: Filter of each quadrant of the grid: north-east, north-west, south-east, south-west.
    quadrant_filters: ClassVar[tuple[str, str, str, str]] = ("g", "r", "i", "z")
    overscan_px: ClassVar[int] = 20
    exptime_s: ClassVar[float] = 45.0
    read_time_s: ClassVar[float] = 20.0
    #: Gain [e-/ADU], read noise [e-], saturation [raw ADU] and the coefficient c of the non-linearity
    #: true = measured (1 + c measured) [1/ADU of signal above bias], for amplifiers A and B.
    gains: ClassVar[tuple[float, float]] = (1.60, 1.68)
    read_noises: ClassVar[tuple[float, float]] = (6.5, 7.2)
    saturation_adu: ClassVar[float] = 57000.0
    nonlinearities: ClassVar[tuple[float, float]] = (4.0e-7, 2.5e-7)

    @property
    def raw_shape(self) -> tuple[int, int]:
        """Shape of a raw extension, overscan included."""
        return self.ccd_shape[0], self.ccd_shape[1] + 2 * self.overscan_px

    def ccd_position(self, ccd: str) -> tuple[int, int]:
        """Row (0 = north) and column (0 = east) of a CCD in the grid."""
        return divmod(self.ccds.index(ccd), self.grid[1])

    def ccd_offset_deg(self, ccd: str) -> tuple[float, float]:
        """Offset (to the east, to the north) of the CCD's centre from the boresight [deg on the tangent plane]."""
        row, column = self.ccd_position(ccd)
        step_y, step_x = (n + self.gap_px for n in self.ccd_shape)
        east_px = ((self.grid[1] - 1) / 2 - column) * step_x
        north_px = ((self.grid[0] - 1) / 2 - row) * step_y
        return east_px * self.pixel_scale_arcsec / 3600, north_px * self.pixel_scale_arcsec / 3600

    def default_filter(self, ccd: str) -> str:
        """Filter in front of a CCD: what the simulator writes, and what bias and dark frames count as."""
        row, column = self.ccd_position(ccd)
        return self.quadrant_filters[2 * (row >= self.grid[0] / 2) + (column >= self.grid[1] / 2)]

    def amplifiers(self) -> tuple[Amplifier, Amplifier]:
        """The two amplifiers of any CCD with their default values."""
        ny, nx = self.ccd_shape
        half, rows = nx // 2, slice(0, ny)
        amplifiers = []
        for i, name in enumerate("AB"):
            columns = slice(i * half, (i + 1) * half)
            overscan = slice(nx + i * self.overscan_px, nx + (i + 1) * self.overscan_px)
            amplifiers.append(
                Amplifier(
                    name, (rows, columns), (rows, overscan), (rows, columns),
                    self.gains[i], self.read_noises[i], self.saturation_adu, self.nonlinearities[i],
                )
            )  # fmt: skip
        return amplifiers[0], amplifiers[1]

    def wcs_guess(self, ra_deg: float, dec_deg: float, ccd: str) -> "Header":
        """The undistorted WCS of a CCD for a pointing of the boresight, as a FITS header."""
        from astropy.io.fits import Header

        east, north = self.ccd_offset_deg(ccd)
        scale = self.pixel_scale_arcsec / 3600
        # The boresight, not the CCD, is the tangent point: CRPIX lies outside most CCDs.
        crpix = ((self.ccd_shape[1] + 1) / 2 + east / scale, (self.ccd_shape[0] + 1) / 2 - north / scale)
        values = {
            "WCSAXES": 2, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
            "CRVAL1": ra_deg, "CRVAL2": dec_deg, "CRPIX1": crpix[0], "CRPIX2": crpix[1],
            "CD1_1": -scale, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale, "RADESYS": "ICRS",
        }  # fmt: skip
        return Header(values)

    def read_exposure(self, path: Path) -> ExposureInfo:
        """See `Instrument.read_exposure`."""
        with open_fits(path) as hdus:
            check_complete(path)
            primary = Keywords(path, "primary header", hdus[0].header)
            kind = primary.kind("IMAGETYP", "OBSTYPE")
            mjd, exptime_s = primary.start_mjd(), primary.exptime_s(kind)
            ra_deg, dec_deg = _pointing(primary, kind)
            filters = {ccd: self._filter(path, hdus, ccd, kind) for ccd in self._present(path, hdus)}
            return ExposureInfo(
                key=exposure_key(self.name, mjd), instrument=self.name, kind=kind, night=night_of(mjd), mjd=mjd,
                exptime_s=exptime_s, ra_deg=ra_deg, dec_deg=dec_deg,
                airmass=primary.number("AIRMASS", low=0.9, high=40.0, default=float("nan")),
                target=clean_text(primary.text("OBJECT", default="")),
                project=clean_text(primary.text("PROJECT", "PROPID", default="")),
                field=field_name(primary.text("FIELD", default=""), ra_deg, dec_deg),
                filters=filters, flat_type=primary.flat_type("IMAGETYP", "OBSTYPE"),
            )  # fmt: skip

    def read_ccd(self, path: Path, ccd: str) -> RawCcd:
        """See `Instrument.read_ccd`."""
        exposure = self.exposure_of(path)
        if ccd not in exposure.filters:
            raise BadExposure(f"{path}: holds no CCD {ccd!r}, only {', '.join(exposure.filters)}")
        with open_fits(path, is_checked=True) as hdus:
            header = hdus[f"CCD{ccd}"].header
            data = read_pixels(path, hdus, f"CCD{ccd}")
            amplifiers = self._read_amplifiers(Keywords(path, f"CCD{ccd}", header, hdus[0].header))
            guess = self._read_wcs(header, exposure, ccd)
        gain = sum(amp.gain for amp in amplifiers) / len(amplifiers)
        info = ImageInfo(
            exposure=exposure.key, ccd=ccd, instrument=self.name, field=exposure.field, filter=exposure.filters[ccd],
            mjd=exposure.mjd, exptime_s=exposure.exptime_s, airmass=exposure.airmass, target=exposure.target,
            project=exposure.project, gain=gain,
            read_noise=(sum(amp.read_noise**2 for amp in amplifiers) / len(amplifiers)) ** 0.5,
            saturation=min(amp.saturation * amp.gain / gain for amp in amplifiers),
            pixel_scale_arcsec=self.pixel_scale_arcsec, wcs_guess=guess,
        )  # fmt: skip
        return RawCcd(info, data, amplifiers)

    def _present(self, path: Path, hdus: "HDUList") -> list[str]:
        """The CCDs in a file: all of them, or exactly those NCCD and CCDLIST announce."""
        names = [hdu.name for hdu in hdus[1:]]
        header = Keywords(path, "primary header", hdus[0].header)
        announced = header.number("NCCD", low=1, high=len(self.ccds), default=float(len(self.ccds)))
        if len(names) != announced:
            raise BadExposure(
                f"{path}: {len(names)} extensions where NCCD promises {announced:g}: incomplete, transfer it again"
            )
        text = header.text("CCDLIST", default="")
        expected: Sequence[str] = [part.strip() for part in text.split(",")] if text else self.ccds
        if sorted(names) != sorted(f"CCD{ccd}" for ccd in expected) or not set(expected) <= set(self.ccds):
            raise BadExposure(
                f"{path}: extensions {','.join(names)[:60]} are not the CCDs {','.join(expected)[:60]}:"
                f" name them CCD{self.ccds[0]} to CCD{self.ccds[-1]}, with CCDLIST if some are left out"
            )
        for hdu in hdus[1:]:
            if image_shape(hdu) != self.raw_shape:
                raise BadExposure(f"{path}: {hdu.name}: shape {image_shape(hdu)} (y, x), expected {self.raw_shape}")
        return [ccd for ccd in self.ccds if ccd in expected]

    def _filter(self, path: Path, hdus: "HDUList", ccd: str, kind: str) -> str:
        keywords = Keywords(path, f"CCD{ccd}", hdus[f"CCD{ccd}"].header, hdus[0].header)
        if kind in ("bias", "dark"):
            return self.default_filter(ccd)
        return keywords.filter_name(self.filters)

    def _read_amplifiers(self, header: Keywords) -> tuple[Amplifier, ...]:
        """The amplifiers with what the header says of them."""
        amplifiers = []
        for amp in self.amplifiers():
            raw_data, raw_overscan = amp.raw_data, amp.raw_overscan
            if header.raw(f"DATASEC{amp.name}")[1] is not None:
                raw_data = header.section(f"DATASEC{amp.name}", self.raw_shape)
                raw_overscan = header.section(f"BIASSEC{amp.name}", self.raw_shape)
                _check_sections(header, amp, raw_data, raw_overscan)
            amplifiers.append(
                Amplifier(
                    amp.name, raw_data, raw_overscan, amp.ccd,
                    header.number(f"GAIN{amp.name}", low=0.05, high=50.0, default=amp.gain),
                    header.number(f"RDNOISE{amp.name}", low=0.0, high=200.0, default=amp.read_noise),
                    header.number(f"SATURAT{amp.name}", low=1000.0, high=65535.0, default=amp.saturation),
                    header.number(f"NONLIN{amp.name}", low=-5e-6, high=5e-6, default=amp.nonlinearity),
                )
            )  # fmt: skip
        return tuple(amplifiers)

    def _read_wcs(self, header: "Header", exposure: ExposureInfo, ccd: str) -> str:
        """The telescope's WCS of a CCD: the header's, or the nominal one for the pointing."""
        if exposure.kind != "science":
            return ""
        return wcs_text(header) or header_text(self.wcs_guess(exposure.ra_deg, exposure.dec_deg, ccd))


def _pointing(header: Keywords, kind: str) -> tuple[float, float]:
    """Right ascension and declination of a science exposure; NaN for calibrations."""
    if kind != "science":
        return float("nan"), float("nan")
    return header.angle("RA", 0.0, 360.0, hours=True) % 360.0, header.angle("DEC", -90.0, 90.0)


def _check_sections(header: Keywords, amp: Amplifier, data: tuple[slice, slice], overscan: tuple[slice, slice]) -> None:
    """Sections from a header must fit the CCD, and the overscan must have the rows of the data."""
    expected = tuple(s.stop - s.start for s in amp.ccd)
    if tuple(s.stop - s.start for s in data) != expected:
        raise header.refuse(f"DATASEC{amp.name}", f"does not span {expected[1]} x {expected[0]} pixels")
    if (overscan[0].start, overscan[0].stop) != (data[0].start, data[0].stop):
        raise header.refuse(f"BIASSEC{amp.name}", "must have the rows of the data section")
