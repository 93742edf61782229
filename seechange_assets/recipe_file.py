"""The recipes in force without the assets: kept in the home, so that commands on rows alone start at once.

The assets remain the one source. A file is written from them and named after the code, instrument and configuration
files it was written from, so it can be absent but not outdated.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.settings import Settings, deployed_version
from seechange_assets.provenance import Recipes

FOLDER = "recipes"


@dataclass(frozen=True, slots=True)
class KeptParameters:
    """What of the parameters of a process enters its recipe."""

    algorithm_version: str
    critical: dict[str, Any]

    def critical_values(self) -> dict[str, Any]:
        """JSON-ready values of the fields that enter the provenance id."""
        return dict(self.critical)


def recipes_in_force(settings: Settings) -> Recipes:
    """The recipes of these settings as `pipeline.build_recipes` gives them, without importing the assets.

    Only for what compares ids and recipes: there are no parameter models in them, and the reference set in use is
    not taken into account yet (`io_managers.recipes.with_reference_set`).

    Raises
    ------
    ParameterError
        For an unknown section or parameter, with the nearest valid name.
    """
    file = settings.home / FOLDER / f"{_name(settings)}.json"
    try:
        kept = json.loads(file.read_text())
    except FileNotFoundError:
        kept = _built(settings)
        _write(file, kept)
    parameters: dict[str, Any] = {
        name: KeptParameters(recipe["algorithm_version"], recipe["critical"]) for name, recipe in kept.items()
    }
    return Recipes(parameters, {name: tuple(recipe["upstreams"]) for name, recipe in kept.items()})


def _name(settings: Settings) -> str:
    """Characters that change with everything the recipes follow from."""
    files = [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None for path in settings.config]
    told = json.dumps([deployed_version(settings.instrument, ()), *files])
    return hashlib.sha256(told.encode()).hexdigest()[:20]


def _built(settings: Settings) -> dict[str, Any]:
    from seechange_assets.pipeline import build_recipes

    recipes = build_recipes(settings)
    return {
        name: {
            "algorithm_version": recipes[name].algorithm_version,
            "critical": recipes.parameters(name).critical_values(),
            "upstreams": recipes.upstreams(name),
        }
        for name in recipes
    }


def _write(file: Path, kept: dict[str, Any]) -> None:
    """Leave this file alone in its folder; who reads at the same time sees a whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in file.parent.glob("*.json"):
        old.unlink(missing_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(kept))
    temporary.replace(file)
