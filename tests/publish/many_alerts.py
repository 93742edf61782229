"""Ten thousand alerts with three stamps each, from associations to the broker's answers, and what that costs."""

import time
from typing import NamedTuple

import numpy as np
import psutil

from resources.alert_stream import AlertStream
from resources.database import Database
from resources.services import broker, postgres
from resources.services.supervisor import Supervisor
from resources.settings import psycopg2_url
from seechange_assets.publish.alerts import build_alerts
from seechange_assets.publish.associations import associate_measurements
from sql.models import ProvenanceRow
from tests.publish.nights import SHAPE, register
from tests.publish.sky import PROVENANCES, cutouts, difference, measurements, scores


class AlertCost(NamedTuple):
    """Core-seconds of this process and of Postgres and broker together, and seconds on the clock."""

    here: float
    services: float
    wall: float


def cpu_of_services(home):
    """User and system time of Postgres (its folder is in the home) and of the broker."""
    total = sum(broker.find(Supervisor(home)).cpu_times()[:2])
    for process in psutil.process_iter():
        try:
            total += sum(process.cpu_times()[:2]) if process.cwd().startswith(str(home / "pgdata")) else 0.0
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def cost_of_alerts(n_alerts, home):
    """Costs of building and committing, and of sending and marking, on services of their own."""
    url = postgres.start(home)
    postgres.ensure_databases(url)
    servers = broker.start(Supervisor(home))
    database = Database(psycopg2_url(url, "seechange"))
    database.upgrade()
    with database.session() as session:
        for process, key in PROVENANCES.items():
            session.merge(ProvenanceRow(id=key, process=process, algorithm_version="1", parameters={}))
    product = difference(SHAPE)
    register(database, product)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 4000, (2, n_alerts))
    ra, dec = product.wcs.astropy().all_pix2world(x, y, 0)
    found = measurements(ra, dec, rng.uniform(500, 5000, n_alerts), x=x, y=y)
    linked = associate_measurements(
        database, product.info, found, scores(n_alerts), provenance_id=PROVENANCES["associations"],
        max_new_objects=n_alerts,
    )  # fmt: skip
    stamps = cutouts(x, y)

    def now():
        return time.process_time(), cpu_of_services(home), time.monotonic()

    begin = now()
    build_alerts(
        database, product.info, linked, stamps, product.wcs, product.psf, night="20990101", software_version="1",
        provenance_ids=PROVENANCES, provenance_tag="current",
    )  # fmt: skip
    middle = now()
    stream = AlertStream(servers, message_timeout_s=300.0)  # however busy the machine is
    sent = stream.relay(database, limit=n_alerts)
    end = now()
    database.engine.dispose()
    assert sent == n_alerts
    return [AlertCost(*(q - p for p, q in zip(a, b, strict=True))) for a, b in ((begin, middle), (middle, end))]
