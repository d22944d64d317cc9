"""The set-up of a run's cameras without a run: a configuration, and what takes it."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

from commands.wiring.cameras import CameraDiff
from commands.wiring.kinds import load_config
from commands.wiring.reload import ConfigText
from commands.wiring.setup import RunSetup
from pipeline.config_loader import read_yaml
from pipeline.guards.history import RuleHistory

TEXT = """\
# two cameras of the hall
sources:
  - uri: line:?fps=5&size=160x120&seed=1 # the left one
    name: left
  - {uri: 'rtsp://user:secret@10.0.0.9/x', name: right}
guards:
  regions:
    - name: belt # where parts pass
      polygon: [[0, 0.1], [1, 0.1], [1, 0.9], [0, 0.9]]
    - name: dock
      polygon: [[0, 0], [9, 0], [9, 9]]
      cameras: [right]
  rules:
    - name: on-the-belt
      rule: heat_inside(belt) >= 0.6 # of the evidence
# the end
sinks: [out.jsonl]
"""
CORNER = [[0, 0], [0.4, 0], [0.4, 0.4]]


class Run:
    """Takes configurations as a run would; its network is a classifier."""

    def __init__(self, config):
        self.config = config
        self.applied, self.failed = [], []
        self.places = SimpleNamespace(labels=("ok", "scratch"), has_boxes=False)

    def apply(self, config):
        self.applied.append(config)
        return CameraDiff([], [], [], self.failed)


class Watcher:
    """Makes calls at once."""

    def submit(self, call):
        future = Future()
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)
        return future


def made(path, text=TEXT, **options):
    """Return the set-up of a run with this configuration, and the run; ``path`` None: without a file."""
    if path is not None:
        path.write_text(text)
    config_text = ConfigText("run.yaml", lambda each: load_config(read_yaml(each, "run.yaml"), "run.yaml"),
                             path=path, text=text, **options)  # fmt: skip
    run = Run(config_text.read())
    config_text.accept()
    setup = RunSetup(config_text)
    setup.bind(run, Watcher(), RuleHistory())
    return setup, run


def with_corner(shown):
    rule = {"name": "off-the-corner", "rule": "heat_inside(corner) < 0.5", "cameras": ["left"]}
    return {
        "revision": shown["revision"],
        "regions": [*shown["regions"], {"name": "corner", "polygon": CORNER, "cameras": ["left"]}],
        "rules": [{**shown["rules"][0], "rule": "heat_inside(belt) >= 0.7"}, rule],
        "roi": [0.1, 0.1, 0.5, 0.5],
    }
