"""Entry point: sets up the process, then runs the command line (``commands/``).

``python run.py`` runs the demo, the simulated inspection line; ``python run.py --help`` lists every command.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # Nothing is open yet, so the process may end at once.
    for early in (signal.SIGINT, signal.SIGTERM):
        signal.signal(early, lambda *_: os._exit(0))

import ctypes
import io
import logging
import threading
from contextlib import suppress

from commands.console import EXIT_INPUT, print_error
from commands.signals import shutdown_on_signal
from pipeline.errors import ReciproStreamError, of_path
from pipeline.log_format import make_formatter

MALLOC_THRESHOLD_BYTES = 1 << 30
PROJECT_PACKAGES = frozenset({"commands", "engine", "overlays", "pipeline", "recipro_stream", "stream"})
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def set_up_process() -> None:
    """Set environment variables, core dump limit and allocator thresholds; call it before torch is imported.

    OpenMP threads wait passively and leave the cores to decoding, drawing and encoding. glibc keeps the memory that a
    frame frees for the next frame: returning it costs thousands of page faults per frame. The telemetry of ONNX Runtime
    is off.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEO_X11_WMCLASS", "recipro-stream")
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        # A core dump would contain passwords and tokens; prlimit raises the limit again.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_TRIM_THRESHOLD, MALLOC_THRESHOLD_BYTES)
            mallopt(M_MMAP_THRESHOLD, MALLOC_THRESHOLD_BYTES)


def main() -> None:
    """Run the command line; print errors that a user can fix on standard error, with an exit code."""
    set_up_process()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # file names may hold characters that the terminal cannot encode
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter("text"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    logging.getLogger("torch").setLevel(logging.WARNING)
    try:
        with shutdown_on_signal(threading.Event()):
            from commands.app import app

            app()
    except ReciproStreamError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] in PROJECT_PACKAGES:
            raise
        print_error(f"a library cannot be loaded ({error}); run `uv sync`; `run.py doctor` lists what is missing")
        sys.exit(EXIT_INPUT)
    except OSError as error:
        # An operation on a path failed: no permission for a parent folder, a name too long, a circular link, or a
        # network share that does not answer. Exit code 2 keeps a supervisor from restarting the process for ever.
        if (message := of_path(error)) is None:
            raise
        print_error(message)
        sys.exit(EXIT_INPUT)


def program() -> None:
    """Run ``main`` and end the process without waiting for threads that are blocked in FFmpeg.

    Such a thread waits for a camera and cannot be woken; a return during the interpreter's shutdown would crash.
    """
    code: int | str | None = 0
    try:
        main()
    except SystemExit as reason:
        code = reason.code
    if any(thread.name.startswith("source ") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
    sys.exit(code)


if __name__ == "__main__":
    program()
