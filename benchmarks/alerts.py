"""Core-seconds to build, commit and have acknowledged many alerts with three stamps each.

    python benchmarks/alerts.py [--alerts 10000]

Embedded Postgres (migrated, as in production) and embedded broker; their core-seconds are counted too.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def measure(n_alerts, home):
    from tests.publish.many_alerts import AlertCost, cost_of_alerts

    building, sending = cost_of_alerts(n_alerts, home)
    total = AlertCost(*(a + b for a, b in zip(building, sending, strict=True)))
    for what, cost in (("build + commit", building), ("send + mark", sending), ("all", total)):
        print(
            f"{what:15s} {cost.here:6.2f} s here + {cost.services:6.2f} s in services, {cost.wall:6.2f} s by the clock"
        )


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
