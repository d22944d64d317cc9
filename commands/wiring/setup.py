"""Changes areas, zones, lines, regions and rules from the web page: checks, applies and saves each change."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from commands.wiring.cameras import make_cameras, with_all_cameras
from commands.wiring.config_write import is_writable, replaced_text
from commands.wiring.reload import ConfigText, ConfigWatcher, warn_of_later_changes
from commands.wiring.rule_check import check_rule, fragment
from commands.wiring.text_difference import difference
from commands.wiring.yaml_edit import ConfigEdit, ListChange, edit_yaml
from overlays.wire.text import replace_undecodable
from pipeline.camera_setup import CameraSetup
from pipeline.config import Config
from pipeline.errors import ConfigError, SetupConflictError
from pipeline.guards.config import GuardConfig, RegionConfig
from pipeline.guards.history import RuleHistory
from pipeline.guards.lexer import ConditionError
from pipeline.guards.variables import HEAT_INSIDE, NUMBERS

if TYPE_CHECKING:
    from commands.wiring.run import OpenRun

log = logging.getLogger("recipro-stream")

APPLY_SECONDS: Final = 60.0
"""Time limit of a change, in seconds; reopening a camera can take long."""
_AREA: Final = ("roi", "mask")
_PLACES: Final = ("zones", "lines")
_GUARDS: Final = ("regions", "rules")
_MAX_ENTRIES: Final = 100
_MAX_CLASSES: Final = 1000
_MAX_VALUES: Final = 20_000
_MAX_DEPTH: Final = 8
NOT_READY: Final = "the run is not ready yet: the network is being built; try again soon"


@dataclass(frozen=True, slots=True)
class _Bound:
    """The parts of a run that ``RunSetup`` needs."""

    run: OpenRun
    watcher: ConfigWatcher
    history: RuleHistory


class RunSetup(CameraSetup):
    """Reads and changes the set-up of a run's cameras in the YAML text of its configuration.

    Changes run in the thread of the ``ConfigWatcher``, one after another; a reload of the file runs there, too.
    """

    def __init__(self, text: ConfigText) -> None:
        """Store the text; the other methods work only after ``bind``."""
        self._text = text
        self._bound: _Bound | None = None
        self._undo: tuple[str, str] | None = None
        """The revision after the last change, and the text before that change."""
        self._listed: tuple[str | None, list[tuple[int | None, str]]] = None, []
        """A text and its cameras, cached: listing them reads secret files, which can log warnings each time."""

    def bind(self, run: OpenRun, watcher: ConfigWatcher, history: RuleHistory) -> None:
        """Store the opened run; called once the network is built."""
        self._bound = _Bound(run, watcher, history)

    def read(self, camera: str) -> Mapping[str, Any]:
        """Return the set-up of a camera as JSON values."""
        text = self._text.text
        return self._described(text, self._text.parse(text), camera)

    def change(self, camera: str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Apply a changed set-up to the run, write it to the file, and return the new set-up.

        Args:
            camera: name of the camera.
            wanted: the changed keys of the set-up, and its ``revision``.

        Raises:
            SetupConflictError: the configuration changed since the page read it.
            ConfigError: the change is invalid, or was not applied within ``APPLY_SECONDS``.
        """
        return self._in_turn(lambda: self._change(camera, wanted))

    def undo(self, camera: str, revision: str) -> Mapping[str, Any]:
        """Undo the last change, and return the set-up before it.

        Raises:
            SetupConflictError: the configuration changed since, or there is no change to undo.
        """
        return self._in_turn(lambda: self._take_back(camera, revision))

    def apply_file(self, camera: str, file_revision: str) -> Mapping[str, Any]:
        """Apply a configuration file that another program changed, and return the new set-up.

        Args:
            camera: name of the camera whose set-up is returned.
            file_revision: revision of the file that the page showed.

        Raises:
            SetupConflictError: the file has another revision now.
            ConfigError: the file is invalid.
        """
        return self._in_turn(lambda: self._apply_file(camera, file_revision))

    def check(
        self, camera: str, rule: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, Any]:  # fmt: skip
        """Return the error of a rule, or the times at which the rule would have fired in the last minutes.

        Args:
            camera: name of the camera.
            rule: the rule; see ``check_rule``.
            regions: the regions that the rule may name.

        Returns:
            JSON values: ``error`` and ``position``; for a valid rule, counts, durations in seconds and Unix times.
        """
        bound = self._run()
        text = self._text.text
        _, name = self._find(text, self._text.parse(text), camera)
        try:
            guard, known = check_rule(rule, regions, name, bound.run)
        except ConditionError as error:
            return {"error": str(error), "position": error.position}
        except ConfigError as error:
            return {"error": str(error), "position": None}
        past = bound.history.alarms(name, guard, known)
        offset = time.time() - time.monotonic()
        return {
            "error": None,
            "count": past.count,
            "firing_seconds": round(past.firing_seconds, 2),
            "known_seconds": round(past.known_seconds, 2),
            "frames": past.frames,
            "since": round(past.since + offset, 2),
            "now": round(time.time(), 2),
            "spans": [[round(start + offset, 2), round(end + offset, 2), replace_undecodable(text)]
                      for start, end, text in past.spans],
        }  # fmt: skip

    def _run(self) -> _Bound:
        if self._bound is None:
            raise ConfigError(NOT_READY)
        return self._bound

    def _in_turn(self, call: Any) -> Mapping[str, Any]:  # noqa: ANN401 - a function
        future = self._run().watcher.submit(call)
        try:
            result: Mapping[str, Any] = future.result(APPLY_SECONDS)
        except CancelledError:
            raise ConfigError("the run is ending; the change is not made") from None
        except TimeoutError:
            if future.cancel():
                raise ConfigError("the change is not made: the run is busy with other changes; try again") from None
            raise ConfigError(f"the change was not applied within {APPLY_SECONDS:g} s; see the log") from None
        return result

    def _find(self, text: str, config: Config, camera: str) -> tuple[int | None, str]:
        """Return the position of a camera's source and the camera's name.

        The position is None if the source has several cameras.
        """
        if self._listed[0] != text:
            self._listed = text, _listed(config)
        cameras = self._listed[1]
        for position, name in cameras:
            if replace_undecodable(name) == camera:
                return position, name
        known = ", ".join(name for _, name in cameras)
        raise ConfigError(f"camera {camera[:80]!r}: is not in the configuration; it has {known}")

    def _described(self, text: str, config: Config, camera: str) -> dict[str, Any]:
        position, name = self._find(text, config, camera)
        bound = self._run()
        why = ""
        if not self._text.has_sources:
            why = "the cameras are given on the command line (--source); move them into the file to change this here"
        elif position is None:
            why = "several cameras share this entry of sources; change this in the file"
        source = config.sources[position if position is not None else 0].model_dump(mode="json", exclude_unset=True)
        shown = {} if position is None else source
        is_file, is_written = self._text.path is not None, self._is_written
        return {
            "camera": camera,
            "revision": _revision(text),
            "file": self._text.name if is_file else None,
            "written": is_written,
            "editable": {"places": why},
            "boxes": bound.run.places.has_boxes,
            "roi": shown.get("roi"),
            "mask": shown.get("mask", []),
            **{key: _numbered(shown.get(key, [])) for key in _PLACES},
            "regions": _numbered([_dumped(each) for each in config.guards.regions], config.guards.regions, name),
            "rules": _numbered([_dumped(each) for each in config.guards.rules], config.guards.rules, name),
            "classes": [replace_undecodable(label) for label in list(bound.run.places.labels)[:_MAX_CLASSES]],
            "numbers": [*NUMBERS, HEAT_INSIDE, "label"],
            "cameras": len(config.sources),
            "history_seconds": bound.history.known_seconds(name),
            "can_undo": self._undo is not None and self._undo[0] == _revision(text),
            "yaml": fragment(config, position, name),
        }

    @property
    def _is_written(self) -> bool:
        return self._text.path is not None and is_writable(self._text.path)

    def _change(self, camera: str, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        text = self._text.text
        _count_values(wanted)
        self._check_unchanged(text, wanted.get("revision"))
        config = self._text.parse(text)
        position, name = self._find(text, config, camera)
        shown = self._described(text, config, camera)
        if shown["editable"]["places"] and any(
            key in wanted and wanted[key] != shown[key] for key in (*_AREA, *_PLACES)
        ):
            raise ConfigError(f"roi, mask, zones and lines: {shown['editable']['places']}")
        places = () if shown["editable"]["places"] else _PLACES
        edit = ConfigEdit(
            position or 0,
            {key: wanted[key] for key in (_AREA if places else ()) if key in wanted and wanted[key] != shown[key]},
            {key: _list_change(key, wanted, shown) for key in places if key in wanted},
            {key: _list_change(key, wanted, shown) for key in _GUARDS if key in wanted},
        )
        new_text = edit_yaml(text, edit)
        new = self._text.parse(new_text)
        _check_rest(config, new, position, name)
        self._replace(text, config, new_text, new, name)
        self._undo = _revision(new_text), text
        return self._described(new_text, new, camera)

    def _take_back(self, camera: str, revision: str) -> Mapping[str, Any]:
        text = self._text.text
        if self._undo is None or self._undo[0] != _revision(text) or revision != self._undo[0]:
            raise SetupConflictError(
                "the last change cannot be undone: it is undone already, or the configuration has changed since"
            )
        self._check_unchanged(text, revision)
        before, config = self._undo[1], self._text.parse(text)
        old = self._text.parse(before)
        self._replace(text, config, before, old, self._find(before, old, camera)[1])
        self._undo = None
        return self._described(before, old, camera)

    def _check_unchanged(self, text: str, revision: object) -> None:
        """Raise ``SetupConflictError`` if the file or the running configuration changed since a page read it."""
        if revision != _revision(text):
            raise SetupConflictError("somebody else changed the configuration meanwhile; reload, and change it again")
        current = self._text.current()
        if current != text:
            raise self._changed_file(current)

    def _changed_file(self, current: str) -> SetupConflictError:
        """Return the error for a file that another program changed, with the lines that differ."""
        return SetupConflictError(
            f"{self._text.name}: was changed meanwhile by another program, and the run has not applied it; nothing is "
            "written. Apply the file first, or undo its changes",
            difference(self._text.text, current, self._text.name),
            _revision(current),
        )

    def _apply_file(self, camera: str, file_revision: str) -> Mapping[str, Any]:
        current, run = self._text.current(), self._run().run
        if file_revision != _revision(current):
            raise self._changed_file(current)
        config = self._text.parse(current)
        run.apply(config)
        self._text.adopt(current, is_written=True, before=self._text.text)
        self._undo = None
        log.info("%s: read again, because a page asked for it", self._text.name)
        warn_of_later_changes(self._text.name, run.config, config)
        return self._described(current, config, camera)

    def _replace(self, text: str, config: Config, new_text: str, new: Config, name: str) -> None:
        """Apply a new configuration and write its text; if one of the two fails, the other is undone."""
        run, path = self._run().run, self._text.path
        is_written = self._is_written
        try:
            with replaced_text(path, new_text) if path is not None and is_written else nullcontext():
                _apply(run, new, name)
                self._check_unchanged(text, _revision(text))  # the file may have changed while a camera was opened
        except ConfigError:
            run.apply(config)
            raise
        self._text.adopt(new_text, is_written=is_written, before=text)


def _apply(run: OpenRun, config: Config, name: str) -> None:
    if name in run.apply(config).failed:
        raise ConfigError(f"camera {name!r}: cannot be opened with these values; the log has the reason")


def _listed(config: Config) -> list[tuple[int | None, str]]:
    """Return a pair for each camera: the position of its source in ``sources``, and its name.

    The position is None if the source has several cameras.
    """
    positions: list[int | None] = []
    for index, source in enumerate(config.sources):
        count = len(with_all_cameras(config.model_copy(update={"sources": [source]})).sources)
        positions += [index] if count == 1 else [None] * count
    names = [each.name for each in make_cameras(with_all_cameras(config))]
    return list(zip(positions, names, strict=True))


def _revision(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _dumped(entry: RegionConfig | GuardConfig) -> dict[str, Any]:
    return entry.model_dump(mode="json", exclude_unset=True)


def _numbered(
    entries: Sequence[dict[str, Any]], settings: Sequence[RegionConfig | GuardConfig] = (), camera: str = ""
) -> list[dict[str, Any]]:
    """Return entries with their positions; with ``settings``, only the entries that concern the camera."""
    listed = [{"index": index, **entry} for index, entry in enumerate(entries)]
    return [entry for entry in listed if not settings or settings[entry["index"]].concerns(camera)]


def _count_values(value: object, depth: int = 0) -> int:
    """Return the number of values in a change; raise ``ConfigError`` above the limits of number or depth.

    Editing and checking the text takes about 0.2 ms per value.
    """
    each: Iterable[object] = ()
    if isinstance(value, Mapping):
        each = value.values()
    elif isinstance(value, list):
        each = value
    if depth > _MAX_DEPTH:
        raise ConfigError(f"the change is nested more than {_MAX_DEPTH} levels deep")
    count = 1 + sum(_count_values(part, depth + 1) for part in each)
    if count > _MAX_VALUES:
        raise ConfigError(f"the change holds more than {_MAX_VALUES} values; give fewer shapes or corners")
    return count


def _list_change(key: str, wanted: Mapping[str, Any], shown: Mapping[str, Any]) -> ListChange:
    entries = wanted[key]
    positions = frozenset(entry["index"] for entry in shown[key])
    is_list = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not is_list or len(entries) > _MAX_ENTRIES:
        raise ConfigError(f"{key}: give a list of at most {_MAX_ENTRIES} objects")
    given = [entry["index"] for entry in entries if entry.get("index") is not None]
    is_known = all(type(index) is int and index in positions for index in given)  # JSON's 0.0 and false equal 0
    if not is_known:
        raise ConfigError(f"{key}: an index is not one of the camera's entries; reload the page")
    if len(set(given)) != len(given):
        raise ConfigError(f"{key}: two entries have the same index; give each its own")
    return ListChange(entries, positions)


def _check_rest(config: Config, new: Config, position: int | None, name: str) -> None:
    """Check that two configurations differ only in this camera's source, and in guards that concern this camera.

    Raises:
        ConfigError: another part differs, for example because the text shares parts by a YAML alias.
    """

    def rest(each: Config) -> dict[str, Any]:
        kept = each.model_dump(exclude={"sources", "guards"})
        kept["sources"] = [
            source.model_dump(exclude={*_AREA, *_PLACES} if index == position else None)
            for index, source in enumerate(each.sources)
        ]
        kept["guards"] = each.guards.model_dump(exclude=set(_GUARDS))
        listed: list[RegionConfig | GuardConfig] = [*each.guards.regions, *each.guards.rules]
        kept["others"] = [entry.model_dump() for entry in listed if not entry.concerns(name)]
        return kept

    if rest(config) != rest(new):
        raise ConfigError(
            "this part of the file is shared with another part (an alias, &NAME and *NAME); edit the file by hand"
        )
