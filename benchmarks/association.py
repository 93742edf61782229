"""Seconds to associate 5,000 measurements of a CCD with 10 thousand to 10 million objects.

    python benchmarks/association.py [--objects 10000 100000 1000000 10000000]

Embedded Postgres (migrated, as in production) in a folder of its own, which takes 4 GB at 10 million. Four epochs for
each number: 900 new objects with the first. Its objects lie at 2,900 per square degree.
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


def measure(sizes, home):
    from resources.database import Database
    from resources.services import postgres
    from resources.settings import psycopg2_url
    from sql.models import ProvenanceRow
    from tests.publish.many_objects import count, epochs, fill
    from tests.publish.sky import PROVENANCES

    url = postgres.start(home)
    postgres.ensure_databases(url)
    database = Database(psycopg2_url(url, "seechange"))
    database.upgrade()
    with database.session() as session:
        for process, key in PROVENANCES.items():
            session.merge(ProvenanceRow(id=key, process=process, algorithm_version="1", parameters={}))
    print(f"{'objects':>10s}  seconds on the clock (core-seconds here + in Postgres), four epochs; load of the machine")
    for field, n_objects in enumerate(sorted(sizes)):
        began = time.monotonic()
        fill(database, n_objects)
        filled = time.monotonic() - began
        costs = epochs(database, 1, field)
        told = "  ".join(f"{c.wall:.2f} ({c.here:.2f} + {c.postgres:.2f})" for c in costs)
        print(f"{count(database):10d}  {told}; {os.getloadavg()[0]:.1f}; filled in {filled:.0f} s", flush=True)
    database.engine.dispose()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    sizes = parser.parse_args().objects
    from resources import services
    from resources.settings import Settings

    home = Path(tempfile.mkdtemp(prefix="seechange-bench-"))
    try:
        measure(sizes, home)
    finally:
        services.down(Settings.from_environment({"SEECHANGE_HOME": str(home)}))
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
