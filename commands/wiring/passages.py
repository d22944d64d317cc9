"""Builds the counting of parts and crossings from the cameras' zones and lines."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from commands.wiring.cameras import Camera
from pipeline.errors import ConfigError, unknown_name_message
from pipeline.passages.config import LineConfig, ZoneConfig
from pipeline.passages.counter import Places
from pipeline.passages.monitor import PassageMonitor
from pipeline.ports import Explainer
from pipeline.settings import SourceSettings

OK: Final = "ok"
"""Name of the class that is good by default."""


class ConfiguredPlaces:
    """Maps each camera's name to its zones and lines; ``update`` replaces all of them."""

    def __init__(self, cameras: Sequence[Camera], labels: Collection[str], *, has_boxes: bool) -> None:
        """Set the zones and lines of the initial cameras.

        Args:
            cameras: the initial cameras.
            labels: the classes of the network.
            has_boxes: whether the network is a detector.

        Raises:
            ConfigError: zones or lines do not fit the network.
        """
        self.labels, self.has_boxes = labels, has_boxes
        self._places: Mapping[str, Places] = {}
        self._monitor: PassageMonitor | None = None
        self.update(cameras)

    def update(self, cameras: Sequence[Camera]) -> None:
        """Replace all zones and lines by the zones and lines of ``cameras``.

        Raises:
            ConfigError: zones or lines do not fit the network; nothing is changed.
        """
        for camera in cameras:
            self._check(camera.settings, camera.name)
        self._places = {
            c.name: Places(tuple(c.settings.zones), tuple(c.settings.lines), c.settings.same_object_overlap)
            for c in cameras
        }

    def __call__(self, camera: str) -> Places:
        """Return the zones and lines of a camera; an unknown camera has none."""
        return self._places.get(camera, Places())

    def monitor(self, explainer: Explainer) -> Explainer:
        """Return the explainer; for a detector, wrap it so that it also counts parts and crossings."""
        if not self.has_boxes:
            return explainer
        self._monitor = PassageMonitor(explainer, self, ok_default={OK} & set(self.labels))
        return self._monitor

    def summary(self) -> list[str]:
        """Return the counts of the run, one text line per zone or line of each camera."""
        return [] if self._monitor is None else self._monitor.summary()

    def _check(self, source: SourceSettings, camera: str) -> None:
        listed: list[tuple[str, Sequence[ZoneConfig | LineConfig]]]
        listed = [("zones", source.zones), ("lines", source.lines)]
        for key, places in listed:
            if places and not self.has_boxes:
                raise ConfigError(
                    f"{key} of camera {camera!r}: only boxes of a detector can be counted, but the network is a "
                    "classifier; "
                    f"set engine.model to a detector (run.py models), or remove {key}"
                )
            for index, place in enumerate(places):
                self._check_labels(f"{key}[{index}].classes of camera {camera!r}", place.classes or ())
        for index, zone in enumerate(source.zones):
            self._check_labels(f"zones[{index}].ok of camera {camera!r}", zone.ok or ())
            if zone.parsed_vote.needs_ok and not (zone.ok if zone.ok is not None else OK in self.labels):
                raise ConfigError(
                    f"zones[{index}].vote of camera {camera!r}: {zone.vote!r} needs classes that are ok, but no class "
                    "is; name them (ok: [...]), or choose mean or best"
                )

    def _check_labels(self, where: str, names: Collection[str]) -> None:
        for name in names:
            if name not in self.labels:
                raise ConfigError(f"{where}: {name!r}: {unknown_name_message('class', name, self.labels)}")
