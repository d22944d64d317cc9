"""Where it all starts: the process set up, then the command line (commands/), errors told in one line.

``python run.py`` runs the demo, the simulated inspection line; ``python run.py --help`` lists every command.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # Nothing has begun yet that would have to be ended in order.
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

KEPT_BYTES = 1 << 30
OUR_PACKAGES = frozenset({"commands", "engine", "overlays", "pipeline", "recipro_stream", "stream"})
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def settle() -> None:
    """Set the process up for work that comes again with every frame; before torch is loaded.

    A waiting thread of the network must not keep a core busy that decodes, draws or encodes. And memory that a frame
    frees is kept for the next one (glibc only): giving it back costs thousands of page faults a frame. ONNX Runtime,
    where it is used, keeps no diary of it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEO_X11_WMCLASS", "recipro-stream")
    with suppress(ImportError, OSError, ValueError):
        import resource  # there is none on Windows

        # A core dump would hold passwords and tokens; who wants one raises the limit again (prlimit).
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
            mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)


def main() -> None:
    """Run the command line; what the user can mend is told in one line and exit code 2."""
    settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file may be called by what this terminal cannot show
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
        if error.name is not None and error.name.partition(".")[0] in OUR_PACKAGES:
            raise
        print_error(f"a library cannot be loaded ({error}): uv sync; run.py doctor tells what is missing here")
        sys.exit(EXIT_INPUT)
    except OSError as error:
        # Whoever asks a path anything gets here what the system said of it: no permission for a folder on the way, a
        # name too long, a link in a circle, a dead network share. A supervisor must not start it again for ever.
        if (said := of_path(error)) is None:
            raise
        print_error(said)
        sys.exit(EXIT_INPUT)


def program() -> None:
    """Be the process: ``main``, and an end that waits for no thread that waits for a camera's answer.

    Such a thread is within FFmpeg and cannot be woken; Python's own end is not made for threads that come back into it.
    """
    code: int | str | None = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    if any(thread.name.startswith("source ") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
    sys.exit(code)


if __name__ == "__main__":
    program()
