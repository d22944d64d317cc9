"""MQTT on the command line: the credentials file, and refused options."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from commands.wiring import sinks as wiring_sinks
from commands.wiring.kinds import load_config
from overlays.sinks.login import read_login
from overlays.sinks.registry import SINKS
from pipeline.errors import ConfigError
from tests.support.broker import MOSQUITTO, Broker

ROOT = Path(__file__).resolve().parents[2]


def test_credentials_file_is_used_and_never_shown(tmp_path, caplog):
    file = tmp_path / "broker"
    file.write_text("eve:hunter2:hunter2\n")
    file.chmod(0o600)
    options = {"sinks": [{"uri": "mqtts://h/t", "credentials_file": str(file), "qos": 1, "ca_file": "ca.pem"}]}
    settings = load_config(options, "run.yaml").sinks[0]
    secret = wiring_sinks.read_secrets(settings)["credentials_file"]
    assert read_login(secret) == ("eve", "hunter2:hunter2")
    assert (settings.qos, settings.ca_file) == (1, "ca.pem")
    assert "hunter2" not in f"{settings}{secret}{caplog.text}"
    assert not caplog.records
    file.chmod(0o644)
    wiring_sinks.read_secrets(settings)
    assert f"chmod 600 {file}" in caplog.text
    for wrong in ("eve", "eve:a\nbob:b", ":a"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="one line, user:password"):
            read_login(wiring_sinks.read_secrets(settings)["credentials_file"])


def test_credentials_option_applies_to_brokers_without_their_own(tmp_path):
    sinks = [SINKS.settings(uri) for uri in ("mqtt://a", "out.mp4", "MQTTS://b/t")]
    sinks.append(SINKS.settings("mqtt://c", credentials_file="own"))
    updated = wiring_sinks.apply_mqtt_credentials(sinks, tmp_path / "file")
    assert [getattr(sink, "credentials_file", None) for sink in updated] == [
        str(tmp_path / "file"),
        None,
        str(tmp_path / "file"),
        "own",
    ]
    assert wiring_sinks.apply_mqtt_credentials(sinks, None) is sinks
    with pytest.raises(ConfigError, match="add --sink mqtt://HOST/TOPIC"):
        wiring_sinks.apply_mqtt_credentials(sinks[1:2], tmp_path / "file")


@pytest.fixture
def command(command):
    """Run a command; return exit code, and output and errors in one."""

    def call(*arguments):
        code, output, errors = command(*arguments)
        return code, output + errors

    return call


def test_password_in_a_broker_address_is_refused_and_not_repeated(command, caplog):
    caplog.set_level(logging.DEBUG)
    address = "mqtt://eve:hunter2@127.0.0.1/t"
    arguments = ("stream", "--source", "line:?frames=3", "--sink", address)
    code, output = command(*arguments, "--print-config")
    assert code == 0
    assert yaml.safe_load(output)["sinks"][0]["uri"] == "mqtt://***@127.0.0.1/t"
    code, twice = command(*arguments, "--sink", address)
    assert code == 2
    assert "--mqtt-credentials FILE" in twice
    code, printed = command("stream", "--source", "line:?frames=3", "--sink", "out.jsonl", "--mqtt-credentials", "x")
    assert (code, "add --sink mqtt://" in printed) == (2, True)
    assert "hunter2" not in output + twice + caplog.text


def test_mqtt_options_are_refused_for_other_sinks(command, tmp_path):
    (tmp_path / "run.yaml").write_text("sources: line:?frames=3\nsinks: {uri: out.jsonl, qos: 1}\n")
    code, output = command("stream", "run.yaml")
    assert (code, "qos: is not an option of a JSON log (.jsonl); mqtt://, mqtts:// have it" in output) == (2, True)


@pytest.mark.slow
@pytest.mark.skipif(MOSQUITTO is None, reason="no MQTT broker: apt install mosquitto")
def test_stream_publishes_findings_to_a_broker(command, tmp_path):
    heard = (
        "import sys, json, paho.mqtt.client as paho\n"
        "client = paho.Client(paho.CallbackAPIVersion.VERSION2)\n"
        "def told(c, _, m):\n"
        "    print(m.topic, m.payload.decode(), flush=True)\n"
        "    if m.payload == b'offline': c.disconnect()\n"
        "client.on_message = told; client.on_connect = lambda c, *_: c.subscribe('#')\n"
        "client.on_subscribe = lambda *_: print('listening', flush=True)\n"
        "client.connect('127.0.0.1', int(sys.argv[1])); client.loop_forever()\n"
    )
    with (
        Broker(tmp_path, "allow_anonymous true") as broker,
        subprocess.Popen([sys.executable, "-c", heard, str(broker.port)], stdout=subprocess.PIPE, text=True) as ear,
    ):
        try:
            assert ear.stdout.readline() == "listening\n"
            source = "line:?fps=30&size=320x240&seed=3&frames=90"
            code, printed = command("stream", "--source", source, "--backend", "eager", "--sink", broker.uri)
            assert code == 0, printed
            output = ear.stdout.read()
        finally:
            ear.kill()
    assert "plant/status online" in output
    assert output.count("plant/line/finding ") >= 3
    assert '"model":"line_net"' in output
    assert '"state":"ended"' in output
    assert output.rstrip().endswith("plant/status offline")
