"""OPC UA sink: ``opc.tcp://HOST:PORT/NAME``, a server from which controllers and SCADA systems read verdicts.

The server's thread creates the standard address space, which takes seconds, while the run starts; the port is checked
at once. ``docs/integrations/factory.md`` lists the variables.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from asyncua import ua
from asyncua.server.address_space import AddressSpace, NodeManagementService
from asyncua.server.server import Server
from asyncua.ua.status_codes import StatusCodes

from overlays.sinks.plc.loop_thread import LoopThread
from overlays.sinks.plc.opcua_access import ClientCertificates, Users, parse_users, read_certificate
from overlays.sinks.plc.verdicts import FrameVerdict, PartVerdict, PartVerdicts, VerdictRules
from overlays.sinks.settings import OpcUaSettings
from overlays.wire.endpoint import Endpoint, parse_address, without_user
from overlays.wire.text import replace_undecodable
from pipeline.errors import SinkError
from pipeline.frames import Overlay
from pipeline.ports import Sink
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)
logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # it logs each node, and a traceback for each damaged message

_ADDRESS: Final = re.compile(r"opc\.tcp://(?P<address>[^/]+)(?:/(?P<name>[\w.-]{0,64}))?")
_DEFAULT_NAME: Final = "recipro-stream"
_UPDATE_SECONDS: Final = 0.5
MAX_CONNECTIONS: Final = 64
"""Maximum number of connections, each of which needs a file handle; further connections are refused."""
_LOGIN_SECONDS: Final = 10.0
"""Time after which a connection without a session is closed."""
"""Interval at which ages and the quality of silent cameras are written."""
_TYPES: Final = {
    "Ok": ua.VariantType.Boolean,
    "Alarm": ua.VariantType.Boolean,
    "Label": ua.VariantType.String,
    "Score": ua.VariantType.Double,
    "Index": ua.VariantType.Int64,
    "Boxes": ua.VariantType.UInt32,
    "Box": ua.VariantType.Double,
    "Age": ua.VariantType.Double,
    "PartNumber": ua.VariantType.UInt32,
    "PartOk": ua.VariantType.Boolean,
    "PartLabel": ua.VariantType.String,
    "PartShare": ua.VariantType.Double,
    "PartFrames": ua.VariantType.UInt32,
    "PartLatency": ua.VariantType.Double,
    "PartZone": ua.VariantType.String,
}
"""The variables of a camera; ``Box`` is an array."""


@dataclass(frozen=True, slots=True)
class _CameraState:
    """The last verdicts of a camera; the sink's thread replaces the object as a whole."""

    frame: FrameVerdict | None = None
    part: PartVerdict | None = None
    is_lost: bool = False


class _Value(NamedTuple):
    value: Any
    status: int
    source_time: ua.DateTime | None


class OpcUaSink(Sink):
    """Serves label, score, box, alarm, verdict and age of each camera as read-only variables with their quality."""

    lossless = True

    def __init__(
        self,
        settings: OpcUaSettings | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the options; ``__enter__`` starts the server.

        Args:
            settings: the address, users, certificate, and the conditions of verdicts.
            context: the expected cameras, and the users' passwords.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.

        Raises:
            ConfigError: a condition cannot be parsed.
            SinkError: the address is malformed, or other machines can reach it without users and encryption.
        """
        self._settings = settings = OpcUaSettings.of(settings)
        context = context or SinkContext()
        self.uri = without_user(settings.uri)
        secret = context.secrets.get("users_file")
        self._users = None if secret is None else parse_users(secret.text, secret.path)
        self._address, self._name = _parse_address(self.uri)
        _check_access(self.uri, self._address, settings, has_users=self._users is not None)
        self._wall_clock, self._clock = wall_clock, clock
        self._rules = VerdictRules.of(settings)
        self._votes: dict[str, PartVerdicts] = {}
        self._states = {camera: _CameraState() for camera in context.cameras}
        self._nodes: dict[tuple[str, str], ua.NodeId] = {}
        self._objects: set[str] = set()
        """Identifiers of the objects of the server and the cameras."""
        self._written: dict[tuple[str, str], _Value] = {}
        self._changed: asyncio.Event | None = None
        self._identity: tuple[bytes, bytes] | None = None
        """The certificate as DER and its private key as PEM."""
        self._clients: ClientCertificates | None = None
        self._thread = LoopThread(f"opc ua {self.uri}", self._serve)
        self.endpoint = self.uri
        """The address for clients; valid after ``__enter__``."""
        self.is_serving = False
        """True after the server has started to accept clients."""

    def __enter__(self) -> Self:
        self._identity = _read_identity(self.uri, self._settings)
        if (folder := self._settings.client_certificates_folder) is not None:
            self._clients = ClientCertificates(self.uri, folder)
        port = _free_port(self.uri, self._address)
        host = f"[{self._address.host}]" if self._address.is_ipv6 else self._address.host
        self.endpoint = f"opc.tcp://{host}:{port}/{self._name}"
        self._thread.start()
        return self

    @property
    def problem(self) -> str:
        """The reason why the server has ended; empty while it works."""
        return f"the OPC UA server has ended: {self._thread.error}" if self._thread.error is not None else ""

    def put(self, overlay: Overlay) -> None:
        """Store the verdict of a frame; raises ``SinkError`` if the server has ended."""
        if self._thread.ended:
            raise SinkError(f"{self.uri}: the server has ended ({self._thread.error}); start the run again")
        camera = overlay.explanation.frame.camera
        state = self._states.get(camera, _CameraState())
        if overlay.signal_loss is not None:
            state = _CameraState(state.frame, state.part, is_lost=True)
        else:
            vote = self._votes.setdefault(camera, PartVerdicts(self._rules))
            verdict = self._rules.frame_verdict(overlay.explanation)
            state = _CameraState(verdict, vote.add(overlay.explanation, verdict, self._clock()) or state.part)
        self._states[camera] = state
        if self._changed is not None:
            self._thread.call(self._changed.set)

    def forget_camera(self, camera: str) -> None:
        """Mark the variables of a camera as bad."""
        if (state := self._states.get(camera)) is not None:
            self._states[camera] = _CameraState(state.frame, state.part, is_lost=True)

    def __exit__(self, *_: object) -> None:
        self._thread.stop()

    async def _serve(self, end: asyncio.Event) -> None:
        """Build the address space, then write changes until ``end``."""
        changed = asyncio.Event()
        server = Server(user_manager=Users(self.uri, self._users, self._clients))
        server.iserver.max_connections = MAX_CONNECTIONS
        server.iserver.max_pending_activation_seconds = _LOGIN_SECONDS
        server.iserver.node_mgt_service = _NodeService(server.iserver.aspace, end.is_set)
        try:
            await server.init()
        except InterruptedError:
            return
        server.set_endpoint(self.endpoint)
        server.set_server_name(_DEFAULT_NAME)
        await self._set_security(server)
        namespace = await server.register_namespace(f"urn:recipro-stream:{self._name}")
        parent = await server.nodes.objects.add_object(self._object_id(self._name, namespace), self._name)
        async with server:
            self._changed, self.is_serving = changed, True
            log.info("OPC UA: %s", self.endpoint)
            ending = asyncio.ensure_future(end.wait())
            while not end.is_set():
                await self._write(server, parent, namespace)
                waiting = asyncio.ensure_future(changed.wait())
                await asyncio.wait({ending, waiting}, timeout=_UPDATE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                changed.clear()
            ending.cancel()

    async def _set_security(self, server: Server) -> None:
        policy = ua.SecurityPolicyType
        if self._identity is None:
            server.set_security_policy([policy.NoSecurity])
        else:
            certificate, key = self._identity
            await server.load_certificate(certificate, "der")
            await server.load_private_key(key, format="pem")
            server.set_security_policy([policy.Basic256Sha256_SignAndEncrypt, policy.Aes256Sha256RsaPss_SignAndEncrypt])
        token = ua.AnonymousIdentityToken if self._users is None else ua.UserNameIdentityToken
        server.set_identity_tokens([token])

    async def _write(self, server: Server, parent: Any, namespace: int) -> None:  # noqa: ANN401 - a node
        """Write the values that have changed."""
        for camera, state in list(self._states.items()):
            for name, value in self._values(state).items():
                key = (camera, name)
                if key not in self._nodes:
                    await self._add_camera(parent, namespace, camera)
                if self._written.get(key) == value:
                    continue
                variant = ua.Variant(value.value, _TYPES[name])
                data = ua.DataValue(variant, ua.StatusCode(ua.UInt32(value.status)), value.source_time)
                await server.write_attribute_value(self._nodes[key], data)
                self._written[key] = value

    async def _add_camera(self, parent: Any, namespace: int, camera: str) -> None:  # noqa: ANN401 - a node
        text = replace_undecodable(camera)
        folder = await parent.add_object(self._object_id(text, namespace), text)
        for name, kind in _TYPES.items():
            initial = [0.0] * 4 if name == "Box" else ua.get_default_value(kind)
            variable = await folder.add_variable(_node_id(f"{text}.{name}", namespace), name, initial, kind)
            self._nodes[camera, name] = variable.nodeid

    def _object_id(self, text: str, namespace: int) -> ua.NodeId:
        """Return an unused identifier for an object; a camera may have the same name as the server."""
        while text in self._objects or text.rpartition(".")[2] in _TYPES:
            text += "/"
        self._objects.add(text)
        return _node_id(text, namespace)

    def _values(self, state: _CameraState) -> dict[str, _Value]:
        """Return the variables of a camera that have a value."""
        frame, codes = state.frame, StatusCodes
        if frame is None:
            status = codes.BadNoCommunication if state.is_lost else codes.BadWaitingForInitialData
            return {"Ok": _Value(False, status, None)}
        age = max(0.0, self._clock() - frame.captured_at)
        is_bad = state.is_lost or age > self._settings.stale_seconds
        status = codes.BadNoCommunication if is_bad else codes.Good
        captured = ua.DateTime.fromtimestamp(round(self._wall_clock() - age, 1), UTC)
        box = [0.0] * 4 if frame.box is None else [float(edge) for edge in frame.box]
        values = {
            "Ok": frame.is_ok and not is_bad,
            "Alarm": frame.alarms > 0,
            "Label": frame.label,
            "Score": frame.score,
            "Boxes": frame.boxes,
            "Box": box,
            "Age": round(age, 1),
            **_part_values(state.part),
            "Index": frame.index,  # last: who sees a new index finds all values of its frame
        }
        return {name: _Value(value, status, captured) for name, value in values.items()}


def _node_id(text: str, namespace: int) -> ua.NodeId:
    return ua.NodeId(ua.String(text), ua.Int16(namespace))


def _part_values(part: PartVerdict | None) -> dict[str, Any]:
    if part is None:
        return {}
    return {
        "PartNumber": part.number,
        "PartOk": part.is_ok,
        "PartLabel": part.label,
        "PartShare": part.share,
        "PartFrames": part.frames,
        "PartLatency": part.latency_seconds,
        "PartZone": part.zone,
    }


class _NodeService(NodeManagementService):
    """Creates the nodes of the address space, and stops early if the run has ended."""

    def __init__(self, aspace: AddressSpace, is_ended: Callable[[], bool]) -> None:
        super().__init__(aspace)
        self._is_ended = is_ended

    def try_add_nodes(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - asyncua's
        """Add nodes; raises ``InterruptedError`` after the end of the run."""
        if self._is_ended():
            raise InterruptedError
        return super().try_add_nodes(*arguments, **options)


def _parse_address(uri: str) -> tuple[Endpoint, str]:
    """Return the address and the name of a URI. Raises ``SinkError``."""
    match = _ADDRESS.fullmatch(uri)
    try:
        if match is None:
            raise ValueError  # noqa: TRY301 - the message is the same
        return parse_address(f"tcp://{match['address']}"), match["name"] or _DEFAULT_NAME
    except ValueError:
        raise SinkError(
            f"{uri}: write the address as opc.tcp://HOST:PORT/NAME, such as opc.tcp://127.0.0.1:4840/line"
        ) from None


def _check_access(uri: str, address: Endpoint, settings: OpcUaSettings, *, has_users: bool) -> None:
    """Raise ``SinkError`` if passwords would be sent unencrypted, or other machines could connect without a user."""
    if (settings.certificate_file is None) != (settings.private_key_file is None):
        raise SinkError(f"{uri}: certificate_file and private_key_file belong together; give both")
    if settings.client_certificates_folder is not None and settings.certificate_file is None:
        raise SinkError(
            f"{uri}: client_certificates_folder has no effect without encryption; give certificate_file and "
            "private_key_file"
        )
    is_protected = has_users and settings.certificate_file is not None
    if not address.is_local and not is_protected and not settings.insecure:
        raise SinkError(
            f"{uri}: other machines reach this address; give users_file, certificate_file and private_key_file, or set "
            "'insecure: true' if the network of the controllers is closed"
        )


def _read_identity(uri: str, settings: OpcUaSettings) -> tuple[bytes, bytes] | None:
    """Return the certificate as DER and the key as PEM; None without them. Raises ``SinkError``."""
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    if settings.certificate_file is None or settings.private_key_file is None:
        return None
    path = settings.certificate_file
    try:
        certificate = read_certificate(path)
        path = settings.private_key_file
        key = Path(path).read_bytes()
        matches = load_pem_private_key(key, None).public_key() == certificate.public_key()
    except (OSError, ValueError, TypeError) as error:
        raise SinkError(
            f"{uri}: {path}: cannot be used ({error}); a certificate is DER or PEM, its key PEM without a password"
        ) from None
    if not matches:
        raise SinkError(f"{uri}: {settings.private_key_file}: is not the key of {settings.certificate_file}")
    return certificate.public_bytes(Encoding.DER), key


def _free_port(uri: str, address: Endpoint) -> int:
    """Return the port to listen on, a free port for 0. Raises ``SinkError`` if it cannot be used."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise SinkError(
                f"{uri}: cannot be served ({error.strerror or error}); if the port is in use, choose another port, or "
                "stop the program that uses it (ss -ltnp shows which)"
            ) from None
        return int(probe.getsockname()[1])
