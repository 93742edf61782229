"""One exception tree, two branches: what a retry may cure and what it cannot.

Every error says what happened, where, and what to do. Only an `InputNotReady` lets a
partition wait for what it names; every other error fails the step. Dagster tries the run
of a `RetriableError` again (not of a `StorageFull`, which is requested again when there
is room); a `DataError` needs a person or other data.
"""


class SeeChangeError(Exception):
    """Root of every error this project raises on purpose."""


class RetriableError(SeeChangeError):
    """Something outside the data is missing now and may be there later.

    Parameters
    ----------
    waits_for : str, optional
        Address of the missing product, ``product/partition/ccd``: partitions that wait for it
        run again when it appears.
    """

    def __init__(self, message: str, waits_for: str | None = None) -> None:
        self.waits_for = waits_for
        super().__init__(message)


class DataError(SeeChangeError):
    """The data or the request cannot give a product; trying again gives the same answer."""


class InputNotReady(RetriableError):
    """A product that this one is made with does not exist yet; the partition waits for it."""


class MasterNotFound(InputNotReady):
    """No master calibration frame is valid for this CCD, date and filter."""


class AmbiguousMaster(DataError):
    """Several master calibration frames fit equally well, and nothing says which one to take."""


class BadMaster(DataError):
    """A master calibration frame supplied as a file cannot be used."""


class ReferenceNotFound(InputNotReady):
    """No reference covers this image yet."""


class ProductNotFound(RetriableError):
    """A product that was asked for has not been made under this recipe yet."""


class ServiceUnavailable(RetriableError):
    """A service (Postgres, broker, catalogue server) does not answer."""


class StorageFull(RetriableError):
    """No room for a file or a row; whatever met that is requested again when there is room."""


class WorkerLost(RetriableError):
    """A run ended without a word of its steps: its process or its machine is gone."""


class CatalogError(RetriableError):
    """The sky catalogue has no usable answer for this field."""


class TagConflict(RetriableError):
    """A tag names another recipe; someone has to move it on purpose, or to choose another name."""


class InWork(RetriableError):
    """A run is at work on what somebody wants to delete."""


class AlertsSent(DataError):
    """Alerts have told the world of a product: it stays, so that anybody can see what they were made of."""


class BadExposure(DataError):
    """A raw file that cannot be registered: unreadable, incomplete or with absurd header values."""


class ExposureConflict(DataError):
    """The key of this exposure is taken by a file with other bytes."""


class ReferenceConflict(DataError):
    """A reference exists with other pixels; it stays, because differences were made with it."""


class InvalidName(DataError):
    """A name that may become a path or a key breaks the allow-list."""


class InvalidRequest(DataError):
    """What was asked for contradicts what is there."""


class BadPixels(DataError):
    """The pixels of a CCD hold no usable information (all NaN, constant, saturated)."""


class TooFewStars(DataError):
    """Not enough stars for a fit.

    Parameters
    ----------
    step : str
        The fit that failed, e.g. ``"psf"``.
    n_found, n_required : int
        What there was and what is needed.
    """

    def __init__(self, step: str, n_found: int, n_required: int, advice: str = "") -> None:
        self.step, self.n_found, self.n_required = step, n_found, n_required
        super().__init__(f"{step}: {n_found} usable stars found, {n_required} required. {advice}".strip())


class AstrometryError(DataError):
    """No trustworthy astrometric solution."""


class ReferenceUnusable(DataError):
    """A reference exists but cannot be subtracted from this image (no overlap, masked, other filter)."""


class TooManyDetections(DataError):
    """More detections than a real sky can give: the subtraction is bad."""


class CheckFailed(DataError):
    """A product breaks a blocking rule; what would be made from it is not made."""


class ArchiveError(DataError):
    """A file of the archive is missing or differs from its row."""


class ParameterError(DataError):
    """A configuration that names an unknown parameter or gives one a value it cannot have."""


#: What ends by itself, whatever the data are: who met one of these is tried again after a while (`sensors.repeats`).
OUTAGES = (WorkerLost, ServiceUnavailable, CatalogError)
