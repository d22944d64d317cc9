"""Faults in a fleet of three nodes on one machine, over Ray: the law, and that all cameras come back.

``tests/bench/fleet.py`` runs the faults in a process of its own, since Ray keeps threads, signal handlers and settings
of the process that has loaded it; its times are for ``docs/fleet.md``, not for tests.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CAMERAS = 6
FAULTS = ("worker", "director", "apply", "drain", "node", "password")

pytestmark = [
    pytest.mark.fleet,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an extra: uv sync --inexact --extra fleet"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Each fault's figures, by name; all come from one fleet, which is started once."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.bench.fleet", *FAULTS, "--gateway",
         "--cameras", str(CAMERAS), "--nodes", "3", "--rate", "2"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    rows = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith('{"fault"')]
    return {row["fault"]: row for row in rows}


@pytest.mark.parametrize("fault", FAULTS[:-1])
def test_fleet_publishes_every_camera_again_after_a_fault_and_none_twice(results, fault):
    assert results[fault]["published"] == CAMERAS
    assert results[fault]["overlaps"] == []


def test_gateway_shows_every_camera_through_all_faults_and_no_frame_of_a_lower_epoch(results):
    shown = results["gateway"]
    assert shown["frames"] > 0
    assert shown["overlaps"] == []
    assert len(shown["places"]) == CAMERAS + 2  # one that sends nothing, and one beyond capacity
    assert "has sent no frame yet" in shown["reasons"][0]
    assert "beyond capacity" in shown["reasons"][1]


def test_gateway_lists_the_metrics_of_the_live_nodes(results):
    assert len(results["gateway"]["nodes"]) == 2  # of three, one was killed
    assert results["gateway"]["metrics"]


def test_killed_director_is_replaced_by_one_of_a_later_term(results):
    assert results["director"]["new_terms"]


def test_killed_and_drained_nodes_had_cameras(results):
    assert min(results[fault]["moved"] for fault in ("worker", "node", "drain")) > 0


def test_no_file_and_no_command_line_of_ray_has_the_password_of_a_camera(results):
    assert results["password"]["files"] > 10
    assert results["password"]["with_password"] == []
