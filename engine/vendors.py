"""What libraries beside torch would do without being asked: tell their makers, and share folders with strangers.

Telemetry is off for every vendor, before its library is loaded. Folders for what vendors compile lie in the guarded
cache folder, or in one of this process's own: what is in them is code, and a shared temporary folder is anybody's.
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
"""The variables by which Hugging Face's hub (timm), ONNX Runtime, Ray and Ultralytics are told to keep quiet."""
_COMPILED: Final = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""The variables by which torch and Triton are told where to keep what they compile."""


def stop_telemetry() -> None:
    """Turn off what vendors report; it has to be called before their libraries are loaded.

    OpenVINO's has no switch but a file in the home folder: its package, which OpenVINO can do without, is not loaded.
    """
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # an import of it raises ImportError


def guard_compiled(folder: Path | None) -> None:
    """Give torch's and Triton's compilers folders that nobody else can write to.

    Args:
        folder: the cache folder; None = what is compiled is kept for this process only. A folder that the user named
            by a variable stays, if it is safe.
    """
    for variable, name in _COMPILED.items():
        named = os.environ.get(variable)
        if named and not (objection := unsafe_way(Path(named))):
            continue
        if named:
            log.warning("%s=%s: %s; another folder is used", variable, named, objection)
        os.environ[variable] = str(_private(folder, name))
    _guard_headers(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def _guard_headers(folder: str) -> None:
    """Keep what torch puts into the shared temporary folder whatever its variable says: precompiled headers.

    They are compiled into every kernel, so whoever can write them runs code here.
    """
    from torch._inductor import codecache
    from torch._inductor.runtime import cache_dir_utils, runtime_utils

    for module in (cache_dir_utils, runtime_utils, codecache):
        module.default_cache_dir = lambda: folder  # type: ignore[attr-defined]
    headers = str(Path(folder) / "precompiled_headers")
    codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = headers, str(Path(headers) / "locks")  # noqa: SLF001


def _private(folder: Path | None, name: str) -> Path:
    """Return a folder of this user's own, made with the rights 0700."""
    if folder is not None:
        place = folder / name
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.chmod(0o700)
            objection = unsafe_way(place)
        except OSError as reason:
            objection = reason.strerror or str(reason)
        if not objection:
            return place
        log.warning("compiled results are not kept in %s: %s", place, objection)
    own = Path(tempfile.mkdtemp(prefix="recipro-stream-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def unsafe_way(path: Path) -> str:
    """Return why somebody else may write to a path or put another in its place, or "".

    The path and its folder must belong to this user or to root and be writable by nobody else; the folders above too,
    but for members of their group, and for others where the sticky bit keeps them from what is not theirs.
    """
    if not hasattr(os, "getuid"):
        return ""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links that are asked about
    for place in (path, *path.parents):
        try:
            objection = _objection(place, path)
        except OSError as reason:
            objection = f"{place}: {reason.strerror or reason}"
        if objection:
            return objection
    return ""


def _objection(place: Path, path: Path) -> str:
    about = place.lstat()
    if about.st_uid != os.getuid() and (place == path or about.st_uid != 0):
        return f"{place.name or place} belongs to another user"
    if stat.S_ISLNK(about.st_mode):
        return f"{place} is a link" if place == path else unsafe_way(Path(os.path.realpath(place)))
    others = 0o022 if place in {path, path.parent} else 0o002
    if about.st_mode & others and (place == path or not about.st_mode & stat.S_ISVTX):
        return f"{place.name or place} can be written by others (chmod go-w)"
    return ""
