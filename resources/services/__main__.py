"""Runs the keeper of the home that the environment names."""

import logging

from resources.services.keeper import keep, serving_reports
from resources.settings import Settings

logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
settings = Settings.from_environment()
with serving_reports(settings):
    keep(settings)
