"""`run.py fleet`: starts a node of a fleet; `status`, `where`, `drain` and other commands control the fleet."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from commands.console import print_line, read_text
from commands.fleet.environment import (
    LOOPBACK,
    PORT,
    check_listen,
    check_token,
    create_token,
    default_token_file,
    enter,
)
from commands.options import ACCESS, RUN, PageTokenFile, option
from commands.ray_settings import require_ray
from commands.signals import shutdown_on_signal
from pipeline.errors import ConfigError, ReciproStreamError
from pipeline.fleet.messages import FleetTiming
from pipeline.fleet.settings import FleetConfig, read_fleet

if TYPE_CHECKING:
    from commands.fleet.directors import Directors

log = logging.getLogger("recipro-stream")

_READY_SECONDS: Final = 600.0
"""Time limit for a worker to build its network."""
_ANNOUNCE_SECONDS: Final = 30.0
"""Time limit for a director to start."""
_JOIN_SECONDS: Final = 60.0
"""Time limit for the head to answer a node, which may have been started first."""
_LEAVE_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 1.0
_REJOIN_SECONDS: Final = 5.0
REJOIN: Final = "RECIPRO_FLEET_REJOIN"
"""Environment variable that marks a restarted command; such a command retries until it has joined."""

Address = Annotated[str, option(RUN, "HOST:PORT of the head. Default: the Ray on this machine.", "--address")]
TokenFile = Annotated[Path | None, option(RUN, "The token of the fleet. Default: in your configuration folder.")]
FleetName = Annotated[str, option(RUN, "Name of the fleet. [default: fleet]", "--fleet")]


class _StartByDefault(TyperGroup):
    """Runs ``start`` if the first argument is not a command name, nor a misspelled one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's own type
        if args and not self._is_command(args[0]) and args[0] not in ctx.help_option_names:
            args = ["start", *args]
        return super().parse_args(ctx, args)

    def _is_command(self, word: str) -> bool:
        return word in self.commands or (bool(get_close_matches(word, self.commands)) and not Path(word).exists())


fleet_app = typer.Typer(
    cls=_StartByDefault, no_args_is_help=True, help="Explain cameras on several machines: run.py fleet FLEET.yaml"
)


@fleet_app.command("start")
def start(
    file: Annotated[
        Path, typer.Argument(metavar="FLEET.yaml", help="The file of the fleet: cameras, stream, devices.")
    ],
    join: Annotated[str | None, option(RUN, "HOST:PORT of a head to join. Default: this machine is the head.")] = None,
    listen: Annotated[
        str, option(RUN, "IP address of this machine for other nodes. [default: 127.0.0.1, this machine alone]")
    ] = LOOPBACK,
    node: Annotated[str | None, option(RUN, "Name of this node. Default: the host's name.")] = None,
    token_file: TokenFile = None,
) -> None:
    """Start a node: its workers get cameras from the fleet's director. Ctrl-C ends the node and returns its cameras."""
    require_ray("fleet")
    config = read_fleet(read_text(file), file.name)
    stream = file.parent / config.stream
    _check_stream(stream)
    token = token_file or default_token_file()
    if join is None:
        create_token(token)
    check_token(token)
    enter(os.environ, token, listen)
    check_listen(listen, port=0 if join else PORT)
    try:
        _run_node(config, stream.resolve(), join=join, listen=listen, node=node or socket.gethostname())
    except ReciproStreamError as error:
        if REJOIN not in os.environ:
            raise
        _rejoin(str(error))


@fleet_app.command("status")
def status(
    address: Address = "auto", fleet: FleetName = "fleet", token_file: TokenFile = None,
    as_json: Annotated[bool, option(RUN, "Print JSON in place of tables.", "--json")] = False,
    watch: Annotated[
        bool, option(RUN, "Show the state until Ctrl-C; with --json, print a line twice a second.", "--watch")
    ] = False,
) -> None:  # fmt: skip
    """Show the workers, their load, and the worker of each camera."""
    from rich.console import Console

    from commands.fleet.tables import status_lines, status_tables
    from commands.fleet.watch import watch_json, watch_text

    begun = threading.Event()
    begun.set()
    with _directors(address, fleet, token_file) as directors:
        if watch:
            with shutdown_on_signal(begun) as stop:
                (watch_json if as_json else watch_text)(directors, stop)
            return
        state = directors.call("status")
    if as_json:
        typer.echo(json.dumps(state, indent=2))
    elif (console := Console()).is_terminal:
        console.print(status_tables(state))
    else:
        print_line("\n".join(status_lines(state)))


@fleet_app.command("where")
def where(
    camera: Annotated[str | None, typer.Argument(metavar="[CAMERA]", help="Name of a camera. Default: all.")] = None,
    address: Address = "auto", fleet: FleetName = "fleet", token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Print, as JSON, the worker of a camera, its node, and the addresses at which it is published."""
    with _directors(address, fleet, token_file) as directors:
        if camera is None:
            typer.echo(json.dumps({"cameras": directors.call("status")["cameras"]}))
            return
        found = directors.call("where", camera)
    typer.echo(json.dumps(found))
    if found["worker"] is None:
        raise typer.Exit(1)


@fleet_app.command("gateway")
def gateway(
    sink: Annotated[
        list[str] | None, option(RUN, "http://HOST:PORT of the page (default http://127.0.0.1:8000). Repeatable.")
    ] = None,
    page_token_file: PageTokenFile = None,
    key: Annotated[Path | None, option(ACCESS, "Secret key file of the gateway, if the nodes require keys.")] = None,
    server_key: Annotated[
        str | None, option(ACCESS, "Common public key of the nodes: the file server.key, or its 40 characters.")
    ] = None,
    address: Address = "auto", fleet: FleetName = "fleet", token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Serve a page with all cameras of the fleet, also after they move; runs on a machine with a node."""
    from commands.fleet.gateway import GatewayOptions, run_gateway

    require_ray("fleet")
    check_token(token_file or default_token_file())
    sinks = sink or ["http://127.0.0.1:8000"]
    run_gateway(GatewayOptions(sinks, address, fleet, token_file, page_token_file, key, server_key))


@fleet_app.command("drain")
def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name of a node.")],
    undo: Annotated[bool, option(RUN, "Assign cameras to the node again.", "--undo")] = False,
    address: Address = "auto", fleet: FleetName = "fleet", token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Move all cameras of a node to other nodes and assign it no more, for example before an upgrade."""
    with _directors(address, fleet, token_file) as directors:
        known = directors.call("drain", node, is_drained=not undo)
    if node not in known and not undo:
        raise ConfigError(f"{node}: the fleet has no such node; it has {', '.join(known) or 'none'}")
    print_line(
        f"{node}: gets cameras again" if undo else f"{node}: gives up its cameras; run.py fleet status shows them"
    )


@fleet_app.command("forget")
def forget(
    worker: Annotated[list[str], typer.Argument(metavar="WORKER...", help="Workers, such as NODE/auto-0.")],
    address: Address = "auto", fleet: FleetName = "fleet", token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Remove workers that will not return, so that a new director does not wait for them."""
    with _directors(address, fleet, token_file) as directors:
        directors.call("dismiss", worker)
    print_line(f"removed: {', '.join(worker)}")


@fleet_app.command("apply")
def apply(
    file: Annotated[Path, typer.Argument(metavar="FLEET.yaml", help="The changed file of the fleet.")],
    address: Address = "auto", token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Apply added, removed and changed cameras to the running fleet; other cameras lose no frame."""
    config = read_fleet(read_text(file), file.name)
    with _directors(address, config.name, token_file) as directors:
        changes = directors.call("apply", config.rates)
    for kind, names in changes.items():
        print_line(f"{kind}: {', '.join(names) or 'none'}")


@contextmanager
def _directors(address: str, fleet: str, token_file: Path | None) -> Iterator[Directors]:
    """Connect to a fleet inside the block and yield its directors."""
    require_ray("fleet")
    token = token_file or default_token_file()
    check_token(token)
    host = address.rpartition(":")[0]
    enter(os.environ, token, LOOPBACK if host in {"", LOOPBACK, "localhost"} else "0.0.0.0")  # noqa: S104 - not bound
    from commands.fleet.client import connected, find_directors

    with connected(address, fleet):
        yield find_directors(fleet)


def _check_stream(path: Path) -> None:
    """Check the configuration of the node before Ray starts; log a warning if its cameras are invalid.

    The workers read the cameras again when they get leases, so that a missing secret may be added later.

    Raises:
        ConfigError: the configuration is missing or invalid.
    """
    from commands.wiring.cameras import make_cameras, with_all_cameras
    from commands.wiring.kinds import load_config
    from pipeline.config_loader import read_yaml

    config = with_all_cameras(load_config(read_yaml(read_text(path), path.name), path.name))
    try:
        make_cameras(config)
    except ReciproStreamError as error:
        log.warning("%s: this node can open no camera until this error is corrected: %s", path.name, error)


def _run_node(config: FleetConfig, stream: Path, *, join: str | None, listen: str, node: str) -> None:
    """Run the node until a signal.

    The node restarts itself and joins again in two cases: Ray has ended on this node (killed, or disconnected from the
    head for some seconds), or the head has restarted without its data. A node that is itself the head exits instead.

    Raises:
        ReciproStreamError: the node cannot be started.
    """
    from commands.fleet.client import call, connected, start_directors, start_worker
    from commands.fleet.head import HeadWatch, head_identity, require_head
    from commands.fleet.ray_node import ray_node
    from commands.fleet.worker import WorkerSpec

    if join is not None:
        require_head(join, seconds=_JOIN_SECONDS)
    started = threading.Event()
    started.set()
    with (
        ray_node(listen=listen, head=join, node=node) as running,
        connected(running.address, config.name, listen, seconds=_JOIN_SECONDS),
        shutdown_on_signal(started) as stop,  # entered after Ray, which sets its own signal handlers
    ):
        import ray

        head = HeadWatch(head_identity(running.address))
        head.is_replaced()  # stores the identity of the present head
        node_id = ray.get_runtime_context().get_node_id()
        directors = start_directors(config.name, config.rates, FleetTiming(nodes=config.nodes))
        specs = [
            WorkerSpec(config.name, node, device, number, str(stream), config.without_director, folder=str(Path.cwd()))
            for number, device in enumerate(config.devices)
        ]
        slots = [spec.slot for spec in specs]
        _announce(directors, node, slots)
        workers = [start_worker(spec, directors, node_id) for spec in specs]
        for spec, worker in zip(specs, workers, strict=True):
            capacity = call(worker.capacity, seconds=_READY_SECONDS)
            print_line(f"{spec.slot}: explains {capacity:.1f} frames/s")
        print_line(
            f"node {node} of fleet {config.name} runs; another machine joins with: "
            f"run.py fleet FLEET.yaml --join {running.address} --listen ITS_ADDRESS"
        )
        is_replaced = False
        while not stop.wait(_CHECK_SECONDS) and not running.has_ended and not is_replaced:
            is_replaced = head.is_replaced()
        if is_replaced or running.has_ended:  # Ray's end also stops this process, like a user's signal
            # An exception would leave the block, and its end would wait for Ray forever.
            running.end()
            if join is None:
                log.error("node %s: Ray has ended on this node; start the node again", node)
                os._exit(1)
            reason = "the head came back without its data" if is_replaced else "Ray has ended on this node"
            _rejoin(f"node {node}: {reason}; its cameras go to other nodes")
        _leave(directors, workers, node, slots)


def _announce(directors: Directors, node: str, slots: list[str]) -> None:
    """Announce starting workers, so that a new fleet waits for them before it assigns cameras.

    Raises:
        ReciproStreamError: the fleet has a running node of this name.
    """
    from commands.fleet.client import require_free_slots

    try:
        directors.call("expect", slots, seconds=_ANNOUNCE_SECONDS)
    except ReciproStreamError as error:
        log.warning(
            "node %s: its workers cannot be announced (%s); the fleet may assign cameras before they have started",
            node, error,
        )  # fmt: skip
        return
    require_free_slots(directors, node, slots)


def _rejoin(reason: str) -> NoReturn:
    """Replace this process by a new run of its command, because Ray cannot start twice in one process."""
    log.warning("%s; joins again in %.0f s", reason, _REJOIN_SECONDS)
    time.sleep(_REJOIN_SECONDS)
    os.environ[REJOIN] = "1"
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606


def _leave(directors: Directors, workers: list[Any], node: str, slots: list[str]) -> None:
    """Move the cameras of this node to other nodes, then close its workers."""
    from commands.fleet.client import call

    try:
        directors.call("drain", node)
        deadline = time.monotonic() + _LEAVE_SECONDS
        while time.monotonic() < deadline and any(
            worker["cameras"] for worker in directors.call("status")["workers"] if worker["node"] == node
        ):
            time.sleep(0.2)
        for worker in workers:
            call(worker.close)
        directors.call("dismiss", slots)
        directors.call("drain", node, is_drained=False)
    except ReciproStreamError as error:
        log.warning("node %s: its cameras are assigned again when their leases have ended: %s", node, error)
