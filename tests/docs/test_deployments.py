"""The files in `deploy/`: their commands are ours, the files that they name are mounted, and few ports are open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.wiring.kinds import load_config
from pipeline.config_loader import read_yaml
from pipeline.fleet.settings import read_fleet
from tests.support.documents import parse_arguments

ROOT = Path(__file__).resolve().parents[2]
FLEET = ROOT / "deploy" / "fleet"
KUBERNETES = ROOT / "deploy" / "kubernetes"
COMPOSE = yaml.safe_load((FLEET / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if each["image"].startswith("recipro-stream:")}
PROGRAMS = {name: each for name, each in OURS.items() if "entrypoint" not in each}
NODES = {name: each for name, each in PROGRAMS.items() if "start" in each["command"]}
CLUSTER = yaml.safe_load((KUBERNETES / "raycluster.yaml").read_text(encoding="utf-8"))
GROUPS = {"head": CLUSTER["spec"]["headGroupSpec"], "node": CLUSTER["spec"]["workerGroupSpecs"][0]}
PODS = {name: group["template"]["spec"] for name, group in GROUPS.items()}
CONTAINERS = {(pod, each["name"]): each for pod, spec in PODS.items() for each in spec["containers"]}
COMMANDS = {name: each["command"] for name, each in PROGRAMS.items()} | {
    "/".join(name): each["args"] for name, each in CONTAINERS.items()
}
RAY_PORT = 6379


def files(values: dict[str, Any]) -> list[str]:
    """Return the files that a command reads: its paths, and a key that may also be given as letters."""
    found = [str(value) for value in values.values() if isinstance(value, Path)]
    return found + [str(value) for value in (values.get("server_key"),) if value]


def named_in_stream() -> list[str]:
    """Return the files that the configuration of the nodes names."""
    config = load_config(read_yaml((FLEET / "stream.yaml").read_text(encoding="utf-8"), "stream.yaml"), "stream.yaml")
    text = yaml.safe_dump(config.model_dump(mode="json"))
    return re.findall(r": (/\S+)", text)


def mounted(service: dict[str, Any]) -> dict[str, str]:
    """Return what a service of compose.yaml sees: paths, and the file or volume of each."""
    volumes = [volume.split(":")[:2] for volume in service.get("volumes", [])]
    secrets = {f"/run/secrets/{name}": COMPOSE["secrets"][name]["file"] for name in service.get("secrets", [])}
    return {target: source for source, target in volumes} | secrets


def copied(pod: dict[str, Any]) -> set[str]:
    """Return the files that the first container of a pod copies, with mode 0600."""
    copying = pod["initContainers"][0]
    command = [*copying["command"], *copying["args"]]
    assert command[:5] == ["install", "-m", "0600", "-t", "/run/secrets"]
    return {f"/run/secrets/{Path(path).name}" for path in command[5:]}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_of_a_container_is_accepted_by_the_program(name):
    words, values = parse_arguments(COMMANDS[name])
    assert words[0] == "fleet"
    assert words[1] == ("gateway" if "gateway" in name else "start")
    assert all(isinstance(each, str) for each in COMMANDS[name])
    assert str(values["token_file"]) == "/run/secrets/fleet.token"


@pytest.mark.parametrize("wrong", ["fleet start F.yaml --joins a", "fleet gateway --sinc=a", "flee"])
def test_parser_of_these_tests_refuses_a_wrong_command(wrong):
    with pytest.raises(Exception, match="No such"):
        parse_arguments(wrong.split())


def test_fleet_has_cameras_that_its_nodes_can_open_and_as_many_nodes_as_are_started():
    config = read_fleet((FLEET / "FLEET.yaml").read_text(encoding="utf-8"), "FLEET.yaml")
    stream = yaml.safe_load((FLEET / config.stream).read_text(encoding="utf-8"))
    assert {source["name"] for source in stream["sources"]} == set(config.rates)
    server = yaml.safe_load((FLEET / "mediamtx.yml").read_text(encoding="utf-8"))
    assert [source["uri"] for source in stream["sources"]] == [
        f"rtsp://mediamtx:8554/{name}" for name in server["paths"]
    ]
    assert config.nodes == len(NODES) == 1 + GROUPS["node"]["replicas"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_files_of_a_service_are_mounted(name):
    paths = mounted(PROGRAMS[name])
    wanted = files(parse_arguments(PROGRAMS[name]["command"])[1])
    if name in NODES:
        wanted += ["/etc/recipro/stream.yaml", *named_in_stream()]
    assert wanted
    assert not set(wanted) - paths.keys()
    used = {path for path in paths if path != "/tmp"}  # noqa: S108 - in the container
    assert used == set(wanted)


def test_files_that_compose_mounts_exist_or_are_secrets_that_git_ignores():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/deploy/fleet/secrets/" in ignored
    sources = [volume.split(":")[0] for each in SERVICES.values() for volume in each.get("volumes", [])]
    for source in [*sources, *(secret["file"] for secret in COMPOSE["secrets"].values())]:
        if not source.startswith((".", "secrets/")):
            assert source in COMPOSE["volumes"]
        elif not source.removeprefix("./").startswith("secrets/"):
            assert (FLEET / source).exists(), source


def test_compose_publishes_the_page_and_grafana_on_the_loopback_only():
    published = [port for each in SERVICES.values() for port in each.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:3000:3000", "127.0.0.1:8000:8000"]
    assert COMPOSE["networks"]["fleet"]["internal"] is True


def test_compose_runs_every_service_as_a_user_without_rights():
    for name, each in SERVICES.items():
        assert int(each["user"].split(":")[0]) > 0, name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert each["restart"] == "always", name
    assert all(each["read_only"] for each in OURS.values())
    assert all("healthcheck" in each for name, each in SERVICES.items() if name not in {"machine", "mediamtx"})


def test_compose_nodes_listen_at_their_own_address_and_join_the_head():
    head = SERVICES["machine"]["networks"]["fleet"]["ipv4_address"]
    for name, each in NODES.items():
        values = parse_arguments(each["command"])[1]
        owner = SERVICES[each["network_mode"].split(":")[1]] if "network_mode" in each else each
        assert values["listen"] == owner["networks"]["fleet"]["ipv4_address"]
        assert values["node"] == name
        assert values["join"] == (None if name == "head" else f"{head}:{RAY_PORT}")
    assert parse_arguments(SERVICES["gateway"]["command"])[1]["address"] == f"{head}:{RAY_PORT}"


def test_gateway_shares_network_processes_and_ray_files_with_the_head():
    for key in ("network_mode", "pid"):
        assert SERVICES["head"][key] == SERVICES["gateway"][key] == "service:machine"
    assert mounted(SERVICES["head"])["/tmp"] == mounted(SERVICES["gateway"])["/tmp"]  # noqa: S108 - in the container
    assert PODS["head"]["shareProcessNamespace"] is True
    mounts = [{each["name"] for each in CONTAINERS["head", name]["volumeMounts"]} for name in ("node", "gateway")]
    assert "tmp" in mounts[0] & mounts[1]


def test_prometheus_reaches_the_gateway_by_its_name_with_its_own_token():
    text = (ROOT / "deploy" / "prometheus" / "fleet.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"(\w+):8000", text)) == set(SERVICES["machine"]["networks"]["fleet"]["aliases"])
    targets = {f"/run/secrets/{each['target']}" for each in SERVICES["prometheus"]["secrets"]}
    assert set(re.findall(r"credentials_file: (\S+)", text)) == targets
    service = next(yaml.safe_load_all((KUBERNETES / "network.yaml").read_text(encoding="utf-8")))
    assert (service["metadata"]["name"], service["spec"]["ports"][0]["port"]) == ("gateway", 8000)


def test_ray_cluster_leaves_commands_alone_and_has_the_pinned_version():
    assert CLUSTER["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    pins = [re.search(r"^ray==([\d.]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
            for name in ("constraints.txt", "constraints-cpu.txt")]  # fmt: skip
    assert {pin[1] for pin in pins if pin} == {CLUSTER["spec"]["rayVersion"]}
    assert "authOptions" not in CLUSTER["spec"]  # KubeRay would put the token into the environment


def test_pods_join_the_service_of_their_head():
    name = CLUSTER["metadata"]["name"]
    assert parse_arguments(CONTAINERS["head", "node"]["args"])[1]["join"] is None
    assert parse_arguments(CONTAINERS["node", "node"]["args"])[1]["join"] == f"{name}-head-svc:{RAY_PORT}"
    for each in CONTAINERS.values():  # a variable that is not set would stay as it is written
        used = set(re.findall(r"\$\((\w+)\)", " ".join(each["args"])))
        assert used <= {variable["name"] for variable in each["env"]}


@pytest.mark.parametrize("name", PODS)
def test_files_of_a_pod_are_mounted_and_its_secrets_have_mode_0600(name):
    pod = PODS[name]
    secrets = copied(pod)
    wanted = {"/etc/recipro/FLEET.yaml", "/etc/recipro/stream.yaml", *named_in_stream()}
    for container in pod["containers"]:
        wanted |= set(files(parse_arguments(container["args"])[1]))
        mounts = {each["mountPath"] for each in container["volumeMounts"]}
        assert {each["name"] for each in container["volumeMounts"]} <= {each["name"] for each in pod["volumes"]}
        read = files(parse_arguments(container["args"])[1]) + (named_in_stream() if container["name"] == "node" else [])
        assert all(any(Path(path).is_relative_to(mount) for mount in mounts) for path in read)
    assert {path for path in wanted if path.startswith("/run/secrets/")} == secrets
    assert {path for path in wanted if not path.startswith("/run/secrets/")} == {
        "/etc/recipro/FLEET.yaml", "/etc/recipro/stream.yaml", "/run/allowed"
    }  # fmt: skip
    text = str([each.get("env", []) for each in pod["containers"]])
    assert "secretKeyRef" not in text
    assert "RAY_AUTH_TOKEN'" not in text


@pytest.mark.parametrize("name", PODS)
def test_containers_of_a_pod_have_no_rights_and_own_probes(name):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    for each in [*pod["initContainers"], *pod["containers"]]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
    for each in pod["containers"]:
        ports = {port["name"] for port in each["ports"]}
        assert {each["readinessProbe"]["httpGet"]["port"], each["livenessProbe"]["httpGet"]["port"]} <= ports


def test_ports_of_pods_are_those_of_their_commands():
    stream = yaml.safe_load((FLEET / "stream.yaml").read_text(encoding="utf-8"))
    sinks = {int(sink["uri"].rpartition(":")[2]) for sink in stream["sinks"]}
    for name in PODS:
        assert {port["containerPort"] for port in CONTAINERS[name, "node"]["ports"]} == {RAY_PORT, *sinks}
    page = parse_arguments(CONTAINERS["head", "gateway"]["args"])[1]["sink"]
    assert page == [f"http://0.0.0.0:{CONTAINERS['head', 'gateway']['ports'][0]['containerPort']}"]


def test_network_objects_select_the_pods_of_the_cluster():
    service, policy = yaml.safe_load_all((KUBERNETES / "network.yaml").read_text(encoding="utf-8"))
    assert service["spec"]["selector"]["ray.io/cluster"] == CLUSTER["metadata"]["name"]
    ports = {port["name"] for each in CONTAINERS.values() for port in each["ports"]}
    assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports
    open_ports = [each["port"] for rule in policy["spec"]["ingress"] for each in rule.get("ports", [])]
    assert set(open_ports) == {"page", "node-page"}
    for group in GROUPS.values():
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
