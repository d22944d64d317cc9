"""The page on the command line: the token file, and the message if it is missing."""

from __future__ import annotations

import os
import threading

import pytest

from commands.wiring import sinks as wiring_sinks
from commands.wiring.kinds import load_config
from overlays.sinks.registry import SINKS
from pipeline.config import OverlayConfig
from pipeline.errors import ConfigError


def test_page_token_file_applies_to_pages_without_their_own(tmp_path):
    sinks = [SINKS.settings(uri) for uri in ("http://h:1", "out.mp4", "HTTP://h:2")]
    sinks.append(SINKS.settings("http://h:3", token_file="own"))  # noqa: S106 - a path
    updated = wiring_sinks.apply_web_token(sinks, tmp_path / "token")
    assert [getattr(sink, "token_file", None) for sink in updated] == [
        str(tmp_path / "token"),
        None,
        str(tmp_path / "token"),
        "own",
    ]
    assert wiring_sinks.apply_web_token(sinks, None) is sinks
    with pytest.raises(ConfigError, match="add --sink http://HOST:PORT"):
        wiring_sinks.apply_web_token(sinks[1:2], tmp_path / "token")


def test_token_file_is_read_and_loose_permissions_are_warned_of(tmp_path, caplog):
    path = tmp_path / "token"
    path.write_text("correct-horse-battery\n")
    path.chmod(0o600)
    options = {"sinks": [{"uri": "http://0.0.0.0:8000", "token_file": str(path), "allowed_hosts": ["a.example"]}]}
    config = load_config(options, "run.yaml")
    context = wiring_sinks.make_sink_context(config.sinks[0], ["a"], OverlayConfig(colormap="viridis", opacity=0.3))
    assert context.secrets["token_file"].text == "correct-horse-battery\n"
    assert "correct-horse" not in repr(context)
    assert (context.colormap, context.opacity, context.painted) == ("viridis", 0.3, False)
    assert not caplog.records
    path.chmod(0o644)
    wiring_sinks.read_secrets(config.sinks[0])
    if os.name == "posix":
        assert "chmod 600" in caplog.text
    with pytest.raises(ConfigError, match=r"openssl rand -hex 24 > .*nowhere"):
        wiring_sinks.read_secrets(SINKS.settings("http://h:1", token_file=str(tmp_path / "nowhere")))
    assert "correct-horse" not in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_token_from_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "token"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("correct-horse-battery",))
    writer.start()
    secrets = wiring_sinks.read_secrets(SINKS.settings("http://127.0.0.1:0", token_file=str(pipe)))
    writer.join()
    assert secrets["token_file"].text == "correct-horse-battery"
    assert secrets["token_file"].read_again is None
