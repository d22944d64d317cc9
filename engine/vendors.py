"""Restricts third-party libraries: disables telemetry, puts caches of compiled code in private folders.

Telemetry of all vendors is disabled before their libraries are loaded. Compiled code goes to the compile cache's
folder or to a private temporary folder, because in a shared temporary folder other users could replace it.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_NO_TELEMETRY: Final = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "YOLO_OFFLINE": "true",
}
"""Variables that disable telemetry of the Hugging Face hub (timm), ONNX Runtime, Ray and Ultralytics."""
_COMPILED: Final = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variables for the cache folders of torch and Triton, and the subfolder of each."""


def stop_telemetry() -> None:
    """Disable telemetry of third-party libraries; call this before they are imported.

    OpenVINO's telemetry can only be disabled by a file in the home folder, so the import of its package is blocked;
    OpenVINO works without it.
    """
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # importing it raises ImportError


def guard_compiled(folder: Path | None) -> None:
    """Set cache folders for torch's and Triton's compilers that other users cannot write to.

    A folder that the user set by a variable is used if it is safe.

    Args:
        folder: the compile cache's folder; None = a temporary folder of this process.
    """
    for variable, name in _COMPILED.items():
        configured = os.environ.get(variable)
        if configured and not (objection := unsafe_way(Path(configured))):
            continue
        if configured:
            log.warning(
                "%s=%s: the folder is not used (%s); compiled files are stored in another folder",
                variable,
                configured,
                objection,
            )
        os.environ[variable] = str(_private(folder, name))
    _guard_headers(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def _guard_headers(folder: str) -> None:
    """Move torch's precompiled headers, which ignore the variable, out of the shared temporary folder.

    The headers are compiled into every kernel, so a user who can write them can run code in this process.
    """
    from torch._inductor import codecache
    from torch._inductor.runtime import cache_dir_utils, runtime_utils

    for module in (cache_dir_utils, runtime_utils, codecache):
        module.default_cache_dir = lambda: folder  # type: ignore[attr-defined]
    headers = str(Path(folder) / "precompiled_headers")
    codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = headers, str(Path(headers) / "locks")  # noqa: SLF001


def _private(folder: Path | None, name: str) -> Path:
    """Create a folder with permissions 0700 and return it."""
    if folder is not None:
        path = folder / name
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            objection = unsafe_way(path)
        except OSError as reason:
            objection = reason.strerror or str(reason)
        if not objection:
            return path
        log.warning("compiled results are not stored in %s (%s); a temporary folder is used", path, objection)
    temporary = Path(tempfile.mkdtemp(prefix="recipro-stream-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def unsafe_way(path: Path) -> str:
    """Return why another user can write to or replace a path, or "".

    The path and its folder must belong to this user (the folder also to root) and not be writable by other users. The
    folders above may be writable by their group, and by all users if they have the sticky bit.
    """
    if not hasattr(os, "getuid"):
        return ""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links, which are checked here
    for ancestor in (path, *path.parents):
        try:
            objection = _objection(ancestor, path)
        except OSError as reason:
            objection = f"{ancestor}: {reason.strerror or reason}"
        if objection:
            return objection
    return ""


def _objection(ancestor: Path, path: Path) -> str:
    status = ancestor.lstat()
    if status.st_uid != os.getuid() and (ancestor == path or status.st_uid != 0):
        return f"{ancestor.name or ancestor} belongs to another user"
    if stat.S_ISLNK(status.st_mode):
        return f"{ancestor} is a link" if ancestor == path else unsafe_way(Path(os.path.realpath(ancestor)))
    forbidden = 0o022 if ancestor in {path, path.parent} else 0o002
    if status.st_mode & forbidden and (ancestor == path or not status.st_mode & stat.S_ISVTX):
        return f"{ancestor.name or ancestor} can be written by others (chmod go-w)"
    return ""
