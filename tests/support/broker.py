"""A real MQTT broker, mosquitto, for one test."""

from __future__ import annotations

import contextlib
import getpass
import secrets
import shutil
import signal
import socket
import subprocess
import time

from tests.support.limits import LIMIT_SECONDS

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port():
    """Return a port that nothing listens on, below those that the system gives to sockets without a port of their own.

    So no other test and no connection takes it before it is used, as port 0 in a hundred others would.
    """
    while True:
        with socket.socket() as probe:
            port = secrets.randbelow(12_000) + 20_000
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


class Broker:
    """A mosquitto process for one test."""

    def __init__(self, folder, *lines):
        self.port = free_port()
        config = folder / "mosquitto.conf"
        config.write_text(
            "\n".join([f"listener {self.port} 127.0.0.1", "persistence false", f"user {getpass.getuser()}", *lines])
            + "\n"
        )
        self.command = [MOSQUITTO, "-c", str(config)]
        self.process = None

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self.process.poll() is None, "mosquitto does not start"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    @property
    def uri(self):
        return f"mqtt://127.0.0.1:{self.port}/plant"
