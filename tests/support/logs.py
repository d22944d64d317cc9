"""Logs as tests read them: the explanations, without the lines that runs begin with."""

from __future__ import annotations

import json


def log_lines(path):
    """Return all explanations of a log, in order."""
    return [line for line in all_lines(path) if "run" not in line]


def run_lines(path):
    """Return the line of every run of a log, in order."""
    return [line for line in all_lines(path) if "run" in line]


def all_lines(path):
    """Return every line of a log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
