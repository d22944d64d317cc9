"""A real MQTT broker, mosquitto, for one test."""

from __future__ import annotations

import getpass
import shutil
import signal
import socket
import subprocess
import time

from tests.support.limits import LIMIT_SECONDS

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


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
