"""A broker behind TLS: the embedded one, with a listener in front of it that ends the encryption."""

import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from resources.services import broker
from resources.services.supervisor import Supervisor, free_port


def make_certificate(folder, name):
    """A self-signed certificate of 127.0.0.1 and its key; it is its own authority."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificates of this test")
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class TlsBroker:
    """A broker that tells its clients to come to a port where TLS is spoken, with certificates on both sides."""

    def __init__(self, home, certificate, key, client_authority):
        self.servers = f"127.0.0.1:{free_port()}"
        self._plain = f"127.0.0.1:{free_port()}"
        self._supervisor = Supervisor(home)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.load_verify_locations(client_authority)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self.n_handshakes = 0

    def __enter__(self):
        command = [str(broker.binary()), "broker", "--storage-engine", "memory://tansu/"]
        command += ["--listener-url", f"tcp://{self._plain}", "--advertised-listener-url", f"tcp://{self.servers}"]
        process = self._supervisor.start(broker.NAME, command, address=self._plain)
        self._supervisor.wait_until_ready(broker.NAME, process, lambda: broker.answers(self._plain), timeout_s=30.0)
        host, port = self.servers.split(":")
        self._listener = socket.create_server((host, int(port)))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error):
        self._listener.close()
        self._supervisor.stop(broker.NAME)

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        try:
            secure = self._context.wrap_socket(client, server_side=True)
        except (ssl.SSLError, OSError):
            client.close()
            return
        self.n_handshakes += 1
        host, port = self._plain.split(":")
        plain = socket.create_connection((host, int(port)))
        threading.Thread(target=_pump, args=(secure, plain), daemon=True).start()
        _pump(plain, secure)


def _pump(source, target):
    """Bytes from one end to the other until either closes."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
