"""File descriptors that this process holds open."""

from __future__ import annotations

import os
from pathlib import Path


def open_things() -> dict[str, str]:
    """Return the file descriptors of this process that are sockets or files."""
    things = {}
    for entry in os.scandir("/proc/self/fd") if Path("/proc/self/fd").is_dir() else []:
        try:
            target = Path(entry.path).readlink()
        except OSError:
            continue
        name = str(target)
        if name.startswith("socket:") or (name.startswith("/") and not name.startswith(("/dev/", "/proc/", "/sys/"))):
            things[entry.name] = name
    return things
