"""The examples of the documents are true: they run."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from overlays.curve.keys import make_ring
from overlays.sinks.options import SinkOptions
from overlays.sinks.zeromq import ZeroMqSink

ROOT = Path(__file__).resolve().parents[2]
VIEWING = [b for b in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
           if "Viewer(" in b]  # fmt: skip


class EnoughError(Exception):
    """Ends an example that would go on."""


@pytest.mark.parametrize("example", VIEWING, ids=lambda text: text.splitlines()[2][:60])
def test_an_example_of_the_viewer_prints_what_comes(example, tmp_path, monkeypatch, overlaid):
    make_ring(tmp_path)
    (tmp_path / "viewer.key").write_bytes((tmp_path / "allowed" / "viewer.key").read_bytes())
    monkeypatch.chdir(tmp_path)
    options = SinkOptions()
    if "key=" in example:
        options = SinkOptions(curve_secret_key_file=str(tmp_path / "server.key_secret"), curve_allow="allowed")
    printed, stop = [], threading.Event()

    def say(*words):
        printed.append(" ".join(map(str, words)))
        if len(printed) == 2:
            raise EnoughError

    with ZeroMqSink("tcp://127.0.0.1:0", options=options) as sink:

        def put():
            index = 0
            while not stop.wait(0.02):
                index += 1
                sink.put(overlaid(camera="door", index=index))

        putting = threading.Thread(target=put)
        putting.start()
        try:
            with pytest.raises(EnoughError):
                exec(re.sub(r"tcp://[\w.-]+:5555", sink.endpoint, example), {"print": say})  # noqa: S102 - our own text
        finally:
            stop.set()
            putting.join()
    assert printed[0].startswith("door")
