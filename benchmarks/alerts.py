"""Core-seconds to build, commit and have acknowledged many alerts with three stamps each.

    python benchmarks/alerts.py [--alerts 10000]

Embedded Postgres (migrated, as in production) and embedded broker; their core-seconds are counted too.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil  # noqa: E402  (after the number of threads is set)


def cpu_of_services(home):
    """User and system time of Postgres (its folder is in the home) and of the broker."""
    from resources.services import broker
    from resources.services.supervisor import Supervisor

    total = sum(broker.find(Supervisor(home)).cpu_times()[:2])
    for process in psutil.process_iter():
        try:
            total += sum(process.cpu_times()[:2]) if process.cwd().startswith(str(home / "pgdata")) else 0.0
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def measure(n_alerts, home):
    import numpy as np

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
    sent = AlertStream(servers, message_timeout_s=60.0).relay(database, limit=n_alerts)
    end = now()
    assert sent == n_alerts
    for what, a, b in (("build + commit", begin, middle), ("send + mark", middle, end), ("all", begin, end)):
        ours, theirs, wall = (q - p for p, q in zip(a, b, strict=True))
        print(f"{what:15s} {ours:6.2f} s here + {theirs:6.2f} s in the services, {wall:6.2f} s on the clock")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alerts", type=int, default=10_000)
    n_alerts = parser.parse_args().alerts
    from resources import services
    from resources.settings import Settings

    home = Path(tempfile.mkdtemp(prefix="seechange-bench-"))
    try:
        measure(n_alerts, home)
    finally:
        services.down(Settings.from_environment({"SEECHANGE_HOME": str(home)}))
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
