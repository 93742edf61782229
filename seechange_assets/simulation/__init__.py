"""A sky and a camera with known truth: `simulate_survey` writes raw files, `simulate_ccd` makes one image in memory."""

from seechange_assets.simulation.ccd import SimulatedCcd, simulate_ccd
from seechange_assets.simulation.survey import SimulatedSurvey, simulate_survey

__all__ = ["SimulatedCcd", "SimulatedSurvey", "simulate_ccd", "simulate_survey"]
