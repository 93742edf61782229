"""Runs the keeper of the home that the environment names."""

import logging

from resources.services.keeper import keep
from resources.settings import Settings

logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
keep(Settings.from_environment())
