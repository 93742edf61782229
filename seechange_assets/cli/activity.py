"""What `seechange status` says of the survey's work, beside its services."""

from functools import cached_property
from typing import Any

from seechange_assets.cli.common import print_table


class Observer:
    """Looks at the survey's work as often as it is asked, over the same connections."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration

    def look(self) -> dict[str, Any] | None:
        """The numbers as one more entry of the list of services; None while the database is down or not made yet."""
        from sqlalchemy.exc import OperationalError

        from io_managers import activity
        from seechange_assets.errors import ServiceUnavailable
        from sensors.new_exposures import n_waiting

        try:
            store = self._store
            found, newest = store.database.revisions()
            if found != newest:
                return None
            with store.database.session() as session:
                told = activity.activity(session, store.recipes, store.instrument)
                told["drop"] = {"waiting": n_waiting(self._configuration.drop), **activity.refused(session)}
            with self._dagster.session() as session:
                queue = activity.queue(session) if _has_runs(session) else {"queued": 0, "at_work": 0}
        except (ServiceUnavailable, OperationalError):
            return None
        own = {"name": "activity", "state": "running", "address": None, "pid": None}
        n_workers = _n_workers(self._configuration)
        return {**own, "detail": _summary(told, queue), "workers": n_workers, "queue": queue, **told}

    @cached_property
    def _store(self) -> Any:
        from seechange_assets.definitions import build_store

        return build_store(self._configuration)

    @cached_property
    def _dagster(self) -> Any:
        from resources.database import Database

        return Database(self._configuration.dagster_url)


def look(configuration: Any) -> dict[str, Any] | None:
    """One look; see `Observer`."""
    return Observer(configuration).look()


def show(told: dict[str, Any]) -> None:
    """Print the numbers for a person."""
    rows = [
        {"now": "exposures", "": ", ".join(f"{n} {state}" for state, n in told["exposures"].items()) or "none"},
        {"now": "drop folder", "": _drop(told["drop"])},
        {"now": "queue", "": _queue(told)},
        {"now": "throughput", "": f"{told['ccds_per_hour']} CCDs in the last hour"},
    ]
    names = {"shutter_to_alert": "shutter to alert", "arrival_to_alert": "arrival to alert"}
    for key, name in (names | {"shutter_to_delivery": "shutter to broker"}).items():
        one = told[key]
        text = f"p50 {_time(one['p50_s'])}, p98 {_time(one['p98_s'])} (n = {one['n']})" if one["n"] else "nothing yet"
        rows.append({"now": name, "": text})
    for key, name in {"oldest_open": "oldest in work", "oldest_waiting": "oldest waiting"}.items():
        if one := told[key]:
            reason = f": {one['reason']}" if one["reason"] else ""
            rows.append({"now": name, "": f"{one['exposure']} for {_time(one['age_s'])}{reason}"})
    print_table(rows, title="the last 24 hours")
    if told["failures"]:
        print_table(told["failures"], title="failed CCDs by step and reason")


def _summary(told: dict[str, Any], queue: dict[str, int]) -> str:
    n_failed = sum(failure["ccds"] for failure in told["failures"])
    return f"{queue['queued']} runs wait, {told['ccds_per_hour']} CCDs in the last hour, {n_failed} failed in a day"


def _drop(drop: dict[str, Any]) -> str:
    told, newest = f"{drop['waiting']} files wait, {drop['refused']} refused", drop["newest"]
    if newest:
        told += f"; {newest['name']} {_time(newest['age_s'])} ago: {newest['error']}: {newest['message']}"
    return told if len(told) <= 300 else f"{told[:297]}..."


def _queue(told: dict[str, Any]) -> str:
    warm = f", {told['workers']} warm workers" if told["workers"] else ""
    return f"{told['queue']['queued']} runs wait, {told['queue']['at_work']} at work{warm}"


def _n_workers(configuration: Any) -> int:
    """Warm workers of this machine."""
    from resources.services import workers
    from resources.services.supervisor import Supervisor

    process = workers.find(Supervisor(configuration.home))
    return len(process.children()) if process is not None else 0


def _has_runs(session: Any) -> bool:
    """Whether Dagster has made its tables."""
    import sqlalchemy as sa

    return session.scalar(sa.text("select to_regclass('runs')")) is not None


def _time(seconds: float) -> str:
    """Seconds as a person reads them."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if abs(seconds) < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} d"
