"""File descriptors that this process holds open.

Every test asks for them twice: ``os`` reads them in less than half of the time of ``pathlib``.
"""

from __future__ import annotations

import os

FOLDER = "/proc/self/fd"


def open_things() -> dict[str, str]:
    """Return the file descriptors of this process that are sockets or files."""
    things = {}
    for number in os.listdir(FOLDER) if os.path.isdir(FOLDER) else []:  # noqa: PTH112, PTH208
        try:
            name = os.readlink(f"{FOLDER}/{number}")  # noqa: PTH115
        except OSError:
            continue
        if name.startswith("socket:") or (name.startswith("/") and not name.startswith(("/dev/", "/proc/", "/sys/"))):
            things[number] = name
    return things
