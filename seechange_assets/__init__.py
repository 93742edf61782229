"""SeeChange on Dagster: from raw exposures of a sky survey to transient alerts."""

from typing import Any

__all__ = ["Survey", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Survey` is imported when asked for: the package itself stays light."""
    if name == "Survey":
        from seechange_assets.survey import Survey

        return Survey
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
