"""Dagster's view of the configuration: whether it serves the recipes in force, and having it read them again."""

import json
import urllib.request
from typing import Any

from seechange_assets.errors import ServiceUnavailable

_SERVED = "{ assetNodes { assetKey { path } opVersion } }"
_RELOAD = "mutation { reloadWorkspace { __typename } }"
_TIMEOUT_S = 60.0


def reload_location(settings: Any, recipes: Any) -> None:
    """Have a running Dagster, and its warm workers, load the configuration in force where they have another one.

    Raises
    ------
    ServiceUnavailable
        It was started with other settings, so reading the files again does not help.
    """
    from resources import services

    if settings.ui_url is None:
        return
    services.renew_workers(settings)  # they have read the configuration before they forked
    url = str(settings.ui_url)
    if _serves(url, recipes):
        return
    _ask(url, _RELOAD)
    if not _serves(url, recipes):
        raise ServiceUnavailable(
            "Dagster was started with another configuration (SEECHANGE_CONFIG, SEECHANGE_INSTRUMENT) than this command "
            "has: run `seechange down` and `seechange up`"
        )


def _serves(url: str, recipes: Any) -> bool:
    nodes = _ask(url, _SERVED)["assetNodes"]
    # An experiment beside production has its tag before the names of its assets.
    served = {path[0]: node["opVersion"] for node in nodes if len(path := node["assetKey"]["path"]) == 1}
    return all(served.get(name) == recipe.id for name, recipe in recipes.items())


def _ask(url: str, query: str) -> Any:
    request = urllib.request.Request(  # noqa: S310  (the address is our own)
        f"{url}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return json.load(answer)["data"]
    except OSError as error:
        raise ServiceUnavailable(f"Dagster does not answer at {url}: {error}; run `seechange up`") from error
