"""Modbus sink: ``modbus://HOST:PORT``, a Modbus TCP server from which controllers read verdicts.

``docs/integrations/factory.md`` has the register map. Registers are computed when they are read, so that ages are
correct even if no frame arrives.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Self

from overlays.sinks.plc.modbus_server import ModbusServerThread
from overlays.sinks.plc.verdicts import FrameVerdict, PartVerdict, PartVerdicts, VerdictRules
from overlays.sinks.settings import ModbusSettings
from overlays.wire.endpoint import Endpoint, parse_address, without_user
from pipeline.errors import SinkError
from pipeline.frames import Overlay
from pipeline.ports import Sink
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

_SCHEME: Final = "modbus://"
MAP_VERSION: Final = 1
HEADER_REGISTERS: Final = 10
CAMERA_REGISTERS: Final = 20
MAX_CAMERAS: Final = 64
ZONES_START: Final = HEADER_REGISTERS + MAX_CAMERAS * CAMERA_REGISTERS
"""First register of the zone names."""
ZONE_REGISTERS: Final = 16
"""Number of registers of a zone name, two bytes each."""
REGISTERS: Final = ZONES_START + MAX_CAMERAS * ZONE_REGISTERS
_MAX: Final = 0xFFFF


class ModbusSink(Sink):
    """Serves the verdicts as holding registers and input registers; all are read-only.

    Modbus has no passwords, so an address that other machines can reach requires the option ``insecure``.
    """

    lossless = True

    def __init__(
        self,
        settings: ModbusSettings | str,
        context: SinkContext | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the options; ``__enter__`` starts the server.

        Args:
            settings: the address, and the conditions of verdicts.
            context: the expected cameras, in the order of their registers.
            clock: returns monotonic seconds.

        Raises:
            ConfigError: a condition cannot be parsed.
            SinkError: the address is malformed, or other machines can reach it.
        """
        self._settings = settings = ModbusSettings.of(settings)
        self.uri = without_user(settings.uri)
        self.port = 0
        """The port that the server listens on; valid after ``__enter__``."""
        self._address = _checked_address(self.uri, insecure=settings.insecure)
        self._clock = clock
        self._rules = VerdictRules.of(settings)
        self._began_at = clock()
        self._cameras: dict[str, int] = {}
        """By camera: the number of its block of registers."""
        self._refused: set[str] = set()
        """Cameras without a block, because all blocks are used."""
        self._votes: dict[str, PartVerdicts] = {}
        self._frames: dict[int, FrameVerdict] = {}
        self._parts: dict[int, PartVerdict] = {}
        self._lost: set[int] = set()
        """Blocks of cameras that deliver no frames."""
        for camera in (context or SinkContext()).cameras:
            self._block(camera)
        self._server = ModbusServerThread(self._address, self._registers, REGISTERS)

    def __enter__(self) -> Self:
        self._server.start(self.uri)
        self.port = self._server.port
        for camera, block in self._cameras.items():
            log.info("%s: %s has the registers from %d", self.uri, camera, HEADER_REGISTERS + block * CAMERA_REGISTERS)
        return self

    def put(self, overlay: Overlay) -> None:
        """Store the verdict of a frame; raises ``SinkError`` if the server has ended."""
        self._server.check(self.uri)
        camera = overlay.explanation.frame.camera
        block = self._block(camera)
        if block is None:
            return
        if overlay.signal_loss is not None:
            self._lost.add(block)
            return
        verdict = self._rules.frame_verdict(overlay.explanation)
        part = self._votes[camera].add(overlay.explanation, verdict, self._clock())
        if part is not None:
            self._parts[block] = part
        self._frames[block] = verdict
        self._lost.discard(block)

    def forget_camera(self, camera: str) -> None:
        """Mark the registers of a camera as not valid; it keeps its block."""
        if (block := self._cameras.get(camera)) is not None:
            self._lost.add(block)

    def _block(self, camera: str) -> int | None:
        """Return the number of a camera's block; None if all ``MAX_CAMERAS`` blocks are used."""
        if camera not in self._cameras:
            if len(self._cameras) >= MAX_CAMERAS:
                if camera not in self._refused:
                    self._refused.add(camera)
                    log.error(
                        "%s: %s has no registers: all %d blocks are taken, also those of cameras that left; split the "
                        "cameras into several runs, or start the run again",
                        self.uri, camera, MAX_CAMERAS,
                    )  # fmt: skip
                return None
            self._cameras[camera] = len(self._cameras)
            self._votes[camera] = PartVerdicts(self._rules)
        return self._cameras[camera]

    def _registers(self, first: int, count: int) -> list[int]:
        """Return the current values of ``count`` registers from ``first`` on; called in the server's thread."""
        values: list[int] = []
        if first < HEADER_REGISTERS:
            values += self._header_registers()[first : first + count]
        for begin, size, read in (
            (HEADER_REGISTERS, CAMERA_REGISTERS, self._camera_registers),
            (ZONES_START, ZONE_REGISTERS, self._zone_registers),
        ):
            low, high = max(first - begin, 0), min(first + count - begin, MAX_CAMERAS * size)
            if low < high:
                blocks = range(low // size, (high - 1) // size + 1)
                offset = blocks.start * size
                values += [value for block in blocks for value in read(block)][low - offset : high - offset]
        return values

    def _header_registers(self) -> list[int]:
        header = [MAP_VERSION, int(self._clock() - self._began_at) & _MAX, len(self._cameras)]
        return header + [0] * (HEADER_REGISTERS - len(header))

    def _zone_registers(self, block: int) -> list[int]:
        part = self._parts.get(block)
        return _text_registers("" if part is None else part.zone)

    def _camera_registers(self, block: int) -> list[int]:
        verdict = self._frames.get(block)
        if verdict is None:
            return [0] * CAMERA_REGISTERS
        age = max(0.0, self._clock() - verdict.captured_at)
        is_good = block not in self._lost and age <= self._settings.stale_seconds
        box = (0, 0, 0, 0) if verdict.box is None else verdict.box
        return [
            int(is_good),
            int(verdict.is_ok and is_good),
            verdict.alarms,
            verdict.class_index & _MAX,
            _scaled(verdict.score, 10_000),
            _scaled(age, 100),
            *_long(verdict.index),
            *(_scaled(edge, 1) for edge in box),
            min(verdict.boxes, _MAX),
            *_part_registers(self._parts.get(block)),
        ]

    def __exit__(self, *_: object) -> None:
        self._server.stop()


def _part_registers(part: PartVerdict | None) -> list[int]:
    if part is None:
        return [0] * 7
    return [
        *_long(part.number),
        int(part.is_ok),
        part.class_index & _MAX,
        _scaled(part.share, 10_000),
        min(part.frames, _MAX),
        _scaled(part.latency_seconds, 1000),
    ]


def _text_registers(text: str) -> list[int]:
    """Return a text as registers: UTF-8, high byte first, cut off after a whole character, filled with zeros."""
    size = 2 * ZONE_REGISTERS
    whole = text.encode()[:size].decode(errors="ignore").encode().ljust(size, b"\0")
    return [int.from_bytes(whole[first : first + 2], "big") for first in range(0, size, 2)]


def _scaled(value: float, factor: int) -> int:
    return min(_MAX, max(0, round(value * factor)))


def _long(value: int) -> tuple[int, int]:
    """Return the high and the low 16-bit word of a number."""
    return (value >> 16) & _MAX, value & _MAX


def _checked_address(uri: str, *, insecure: bool) -> Endpoint:
    """Return the address of a URI. Raises ``SinkError``."""
    try:
        address = parse_address(f"tcp://{uri[len(_SCHEME) :]}")
    except ValueError:
        raise SinkError(f"{uri}: write the address as modbus://HOST:PORT, such as modbus://127.0.0.1:5020") from None
    if not insecure and not address.is_local:
        raise SinkError(
            f"{uri}: Modbus has no passwords, so every machine that reaches this address can read the verdicts; set "
            "'insecure: true' if the network of the controllers is closed"
        )
    return address
