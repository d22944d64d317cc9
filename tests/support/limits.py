"""Time limits of tests: generous, for a machine that is slow or busy.

A wait that is over once a condition holds costs nothing, however long it may take; so these limits only end a test that
hangs. ``TEST_TIME_FACTOR`` makes them longer still (or shorter, to see what a machine needs).
"""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("TEST_TIME_FACTOR", "1"))

LIMIT_SECONDS = 240.0 * FACTOR
"""For an answer, a condition, the end of a thread or of a small program."""
WAITS = {"read_timeout_seconds": 60.0, "open_timeout_seconds": 60.0}
"""Options of a source that does not give a camera up because the machine is slow: for tests of anything but stalls.
The largest that sources accept."""
PROGRAM_SECONDS = 600.0 * FACTOR
"""For a program that imports torch, compiles, or checks the whole repository."""
