"""The folder `reports` of a home on loopback: browsers open no file from a page that came by http, as Dagster's do."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: Links in old materializations stay good as long as the port is the same.
USUAL_PORT = 3001


class _Handler(SimpleHTTPRequestHandler):
    """GET and HEAD of files below one folder; the standard library drops every ``..`` of a path."""

    def log_message(self, *_args: object) -> None:
        """A page that was read is not worth a line."""


def serve(folder: Path, port: int = USUAL_PORT) -> ThreadingHTTPServer:
    """Serve `folder` in a thread of this process, with which it ends; on any free port if `port` is taken.

    Raises
    ------
    OSError
        If there is no port at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(_Handler, directory=str(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, name="reports", daemon=True).start()
    return server


def url_of(server: ThreadingHTTPServer) -> str:
    """Where it is served."""
    return f"http://127.0.0.1:{server.server_port}"
