"""`seechange metrics`: the survey's numbers in the format of Prometheus, which OpenTelemetry's collector reads too."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from seechange_assets.cli.common import settings

PREFIX = "seechange"
#: The port that OpenTelemetry keeps for exporters in this format.
DEFAULT_PORT = 9464
LATENCIES = ("shutter_to_alert", "arrival_to_alert", "shutter_to_delivery")
QUANTILES = {"p50_s": "0.5", "p98_s": "0.98"}


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(metrics)


def metrics(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = DEFAULT_PORT,
    address: Annotated[str, typer.Option(help="Where to listen; the numbers are open to whoever can connect.")] = (
        "127.0.0.1"
    ),
) -> None:
    """Serve the survey's numbers to Prometheus until interrupted; each scrape asks the database anew."""
    from seechange_assets.errors import ServiceUnavailable

    try:
        server, thread = serve(settings(), port, address)
    except OSError as error:
        raise ServiceUnavailable(f"cannot listen on {address}:{port} ({error}): name another --port") from error
    typer.echo(f"http://{address}:{server.server_port}/metrics")
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()


def serve(configuration: Any, port: int, address: str = "127.0.0.1") -> tuple[Any, Any]:
    """(HTTP server, its thread), answering already."""
    from prometheus_client import start_http_server

    return start_http_server(port, address, registry=_registry(configuration))


def text(configuration: Any) -> str:
    """The numbers as Prometheus reads them."""
    from prometheus_client import generate_latest

    return generate_latest(_registry(configuration)).decode()


def _registry(configuration: Any) -> Any:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(Numbers(configuration))
    return registry


class Numbers:
    """Collector: what `seechange status` tells, as gauges; only ``seechange_up 0`` while the database is down."""

    def __init__(self, configuration: Any) -> None:
        from seechange_assets.cli.activity import Observer

        self._observer = Observer(configuration)

    def describe(self) -> list[Any]:
        """Nothing beforehand: a registry would ask the database for it."""
        return []

    def collect(self) -> Iterator[Any]:
        """One look."""
        told = self._observer.look()
        yield _gauge("up", "Whether the survey's database answers.", {(): float(told is not None)})
        if told is not None:
            yield from _work(told)
            yield from _ages(told)


def _work(told: dict[str, Any]) -> Iterator[Any]:
    states = {(state,): n for state, n in told["exposures"].items()}
    yield _gauge("exposures", "The newest 600 exposures by state.", states, "state")
    yield _gauge("runs", "Runs of Dagster by state.", {(state,): n for state, n in told["queue"].items()}, "state")
    yield _gauge("workers", "Warm workers of this machine.", {(): told["workers"]})
    yield _gauge("ccds_per_hour", "CCDs that reached their alerts in the last hour.", {(): told["ccds_per_hour"]})
    failures = {(one["step"], one["error"] or ""): one["ccds"] for one in told["failures"]}
    yield _gauge("failed_ccds", "CCDs that failed in the last 24 hours.", failures, "step", "error")


def _ages(told: dict[str, Any]) -> Iterator[Any]:
    latency = {
        (path, quantile): told[path][name]
        for path in LATENCIES
        for name, quantile in QUANTILES.items()
        if told[path][name] is not None
    }
    yield _gauge("latency_seconds", "Percentiles of the last 24 hours.", latency, "path", "quantile")
    ages = {(kind,): told[f"oldest_{kind}"]["age_s"] for kind in ("open", "waiting") if told[f"oldest_{kind}"]}
    yield _gauge("oldest_seconds", "Age of the oldest exposure in work and of the oldest that waits.", ages, "kind")


def _gauge(name: str, help_text: str, values: Mapping[Any, float], *labels: str) -> Any:
    """A family of gauges; `values` are by their labels' values."""
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"{PREFIX}_{name}", help_text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
