"""The command line of ``run.py fleet``, its file and its token; no Ray is started."""

import os
import socket
import stat

import pytest

from commands import ray_settings
from commands.fleet import app
from commands.fleet.environment import check_listen, check_token, create_token, enter, ray_environment
from pipeline.errors import ConfigError, ReciproStreamError
from pipeline.fleet.settings import read_fleet


def test_fleet_file_takes_names_or_a_map_of_options():
    names = read_fleet("cameras: [north, south]", "FLEET.yaml")
    assert names.rates == {"north": 10.0, "south": 10.0}
    mapped = read_fleet("cameras: {north: {rate: 25}, south: }\nname: hall-2\ndevices: [cuda:0, cuda:1]", "FLEET.yaml")
    assert mapped.rates == {"north": 25.0, "south": 10.0}
    assert (mapped.name, mapped.devices, mapped.without_director) == ("hall-2", ["cuda:0", "cuda:1"], "stop")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("stream: x.yaml", "cameras"),
        ("cameras: [north, south, north]", "cameras: 'north' is given twice"),
        ("cameras: [north: {rate: 25}]", "cameras: .* is not a name; give names, or a map"),
        ("cameras: [[north]]", "cameras: .* is not a name"),
        ("cameras: [north", "not YAML at line 1"),
        ("cameras: {north: {rate: 0}}", "cameras.north.rate"),
        ("cameras: [north]\nname: Hall 2", "name"),
        ("cameras: [north]\ncamera: 1", "camera"),
        ("cameras: [north]\nwithout_director: go", "without_director"),
        ("cameras: {north: {uri: 'rtsp://a'}}", "cameras.north.uri"),  # addresses stand in the nodes' own files
    ],
)
def test_fleet_file_names_the_wrong_key(text, key):
    with pytest.raises(ConfigError, match=rf"FLEET.yaml: {key}"):
        read_fleet(text, "FLEET.yaml")


def test_token_is_created_once_and_for_this_user_alone(tmp_path):
    path = tmp_path / "folder" / "token"
    create_token(path)
    text = path.read_text()
    create_token(path)
    assert path.read_text() == text
    assert len(text) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_fleet_refuses_a_token_that_others_can_read(command, tmp_path):
    token = tmp_path / "token"
    token.write_text("x" * 64)
    token.chmod(0o644)
    code, _, errors = command("fleet", "status", "--token-file", token)
    assert code == 2
    assert "chmod 600" in errors


def test_fleet_names_the_missing_token_and_how_to_get_it(command, tmp_path):
    code, _, errors = command("fleet", "where", "north", "--token-file", tmp_path / "none")
    assert code == 2
    assert "copy it from the head node" in errors


def test_fleet_without_ray_names_the_extra(command, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_settings, "find_spec", lambda _: None)
    (tmp_path / "FLEET.yaml").write_text("cameras: [north]")
    code, _, errors = command("fleet", tmp_path / "FLEET.yaml")
    assert code == 2
    assert "uv sync --inexact --extra fleet" in errors


def test_fleet_takes_a_file_in_place_of_a_command_and_checks_it_first(command, tmp_path):
    (tmp_path / "FLEET.yaml").write_text("cameras: []\ncamera: 1")
    code, _, errors = command("fleet", tmp_path / "FLEET.yaml")
    assert code == 2
    assert "FLEET.yaml: camera: " in errors


def test_fleet_refuses_to_listen_at_a_host_name(command, tmp_path):
    (tmp_path / "FLEET.yaml").write_text("cameras: [north]")
    (tmp_path / "stream.yaml").write_text("sources: ['line:']")
    token = tmp_path / "token"
    code, _, errors = command("fleet", tmp_path / "FLEET.yaml", "--listen", "hall", "--token-file", token)
    assert code == 2
    assert "give an IP address of this machine" in errors


def test_ray_gets_the_token_by_its_path_and_stays_on_the_loopback(tmp_path):
    present = {"PYTHONDONTWRITEBYTECODE": "1", "RAY_AUTH_TOKEN": "secret", "HOME": "/home/x"}
    made = ray_environment(present, tmp_path / "token", "127.0.0.1")
    assert made["RAY_AUTH_MODE"] == "token"
    assert made["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert made["RAY_USAGE_STATS_ENABLED"] == "0"
    assert made["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"  # it copies the working directory to all nodes
    assert made["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert "secret" not in made.values()
    assert "PYTHONDONTWRITEBYTECODE" not in made
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in ray_environment(present, tmp_path / "token", "10.0.0.5")


def test_enter_changes_the_environment_that_it_is_given(tmp_path):
    variables = {"RAY_ADDRESS": "elsewhere", "PATH": os.defpath}
    enter(variables, tmp_path / "token")
    assert "RAY_ADDRESS" not in variables
    assert variables["RAY_AUTH_MODE"] == "token"


def test_fleet_names_an_address_that_is_not_of_this_machine_and_a_taken_port():
    with pytest.raises(ConfigError, match=r"--listen 192\.0\.2\.1: is no address of this machine"):
        check_listen("192.0.2.1", port=0)
    check_listen("127.0.0.1", port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is taken; .*--join HOST:PORT"):
            check_listen("127.0.0.1", port=port)
    check_listen("127.0.0.1", port=port)


def test_misspelled_command_of_fleet_is_no_file(command):
    code, _, errors = command("fleet", "statu")
    assert code == 2
    assert "No such command 'statu'" in errors
    assert "status" in errors


@pytest.fixture
def without_a_node(monkeypatch):
    """Starts of a node's Ray, which fail at once."""
    started = []

    def run(_config, stream, **_options):
        started.append(stream)
        raise ReciproStreamError("no Ray in this test")

    monkeypatch.setattr(app, "_run_node", run)
    monkeypatch.setattr(app, "check_listen", lambda *_arguments, **_options: None)
    monkeypatch.setattr(app, "enter", lambda *_arguments: None)
    return started


def test_fleet_checks_the_configuration_of_the_node_before_ray_starts(command, tmp_path, without_a_node):
    (tmp_path / "FLEET.yaml").write_text("{stream: stream.yaml, cameras: [north]}")
    (tmp_path / "stream.yaml").write_text("{sources: [{uri: 'line:', name: north, frmae_rate: 3}]}")
    code, _, errors = command("fleet", "FLEET.yaml", "--token-file", tmp_path / "token")
    assert code == 2
    assert "stream.yaml" in errors
    assert "frmae_rate" in errors
    assert without_a_node == []


def test_fleet_warns_of_cameras_that_cannot_be_opened_and_starts(command, tmp_path, without_a_node, caplog):
    (tmp_path / "FLEET.yaml").write_text("{stream: stream.yaml, cameras: [north]}")
    (tmp_path / "stream.yaml").write_text(
        "{sources: [{uri: 'rtsp://10.0.0.21/x', name: north, credentials_file: north.secret}]}"
    )
    code, _, errors = command("fleet", "FLEET.yaml", "--token-file", tmp_path / "token")
    assert "no Ray in this test" in errors
    assert code != 0
    assert without_a_node == [tmp_path / "stream.yaml"]
    assert "this node can open no camera until this error is corrected: credentials file 'north.secret'" in caplog.text


@pytest.mark.parametrize("user", [{}, {"OMP_NUM_THREADS": ""}])
def test_workers_get_the_default_number_of_threads_and_not_the_one_of_ray(tmp_path, user):
    in_ray = ray_environment(user, tmp_path / "token", "127.0.0.1")
    assert in_ray["OMP_NUM_THREADS"] == ""  # Ray sets 1 if there is no value
    ray_settings.restore_threads(in_ray)
    assert "OMP_NUM_THREADS" not in in_ray


def test_workers_keep_the_number_of_threads_that_the_user_has_set(tmp_path):
    in_ray = ray_environment({"OMP_NUM_THREADS": "3"}, tmp_path / "token", "127.0.0.1")
    ray_settings.restore_threads(in_ray)
    assert in_ray["OMP_NUM_THREADS"] == "3"


def test_missing_token_and_unreadable_path_have_different_messages(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="token is missing; copy it"):
        check_token(tmp_path / "token")
    with pytest.raises(ConfigError, match=r"token cannot be read \(Not a directory\)"):
        check_token(tmp_path / "file" / "token")
