"""What is known of a night: how far each exposure and CCD is, and the numbers its products have."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

#: What a CCD or an exposure can be, in the order in which an exposure takes the state of its CCDs.
STATES = ("failed", "running", "claimed", "waiting", "held", "ready", "done")


@dataclass(frozen=True, slots=True)
class CcdState:
    """How far one CCD of an exposure is.

    Attributes
    ----------
    state : str
        ``ready`` (nothing requested), ``held``, ``claimed`` (requested, not begun), ``running``, ``waiting`` (for a
        master or a reference), ``failed`` or ``done`` (its alerts are committed, or it
        is part of its own reference and nothing remains to be made).
    step, reason : str or None
        The step that failed, waits or is left out, and why.
    """

    ccd: str
    state: str
    step: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ExposureState:
    """How far an exposure is. ``held`` is the reason of a hold (empty where none was given), None without a hold."""

    exposure: str
    night: str
    mjd: float
    registered_at: datetime
    held: str | None
    ccds: tuple[CcdState, ...]

    @property
    def counts(self) -> Counter[str]:
        """How many CCDs are in which state."""
        return Counter(ccd.state for ccd in self.ccds)

    @property
    def state(self) -> str:
        """``done`` only if every CCD is; ``failed`` as soon as one has failed."""
        counts = self.counts
        if counts["claimed"] and (counts["done"] or counts["waiting"]):
            counts["running"] += 1  # some CCDs have begun
        return next(state for state in STATES if counts[state] or state == STATES[-1])

    @property
    def problems(self) -> tuple[CcdState, ...]:
        """The CCDs that failed or wait."""
        return tuple(ccd for ccd in self.ccds if ccd.state in {"failed", "waiting"})


@dataclass(frozen=True, slots=True)
class CcdNumbers:
    """One CCD of a night: its state and what its products say; None where there is no product.

    ``fwhm_px`` is the seeing, ``scatter_mag`` that of single stars about the zero point, ``residual_mas`` the larger
    of the two axes' astrometric residuals; ``seconds`` is the time of all its steps.
    """

    exposure: str
    mjd: float
    state: CcdState
    filter: str | None = None
    fwhm_px: float | None = None
    zero_point: float | None = None
    scatter_mag: float | None = None
    limiting_magnitude: float | None = None
    residual_mas: float | None = None
    n_detections: int | None = None
    n_alerts: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class NightNumbers:
    """Everything a night report shows.

    ``steps`` has for each step how often it was ``computed``, ``waiting`` and ``failed``, and the median and largest
    ``seconds``. ``layout`` gives row and column of each CCD in the focal plane, seen with north up and east left.
    """

    night: str
    instrument: str
    exposures: tuple[ExposureState, ...]
    ccds: tuple[CcdNumbers, ...]
    steps: tuple[dict[str, Any], ...]
    layout: dict[str, tuple[int, int]]
