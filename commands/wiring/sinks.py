"""Applies command-line options to sinks, reads their secret files, and builds them."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands.console import display_name
from commands.wiring.kinds import KINDS
from overlays.sinks.registry import build_sink
from overlays.sinks.settings import CurveSettings, ZeroMqSettings
from pipeline.camera_setup import CameraSetup
from pipeline.config import OverlayConfig
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError
from pipeline.ports import Sink
from pipeline.queries import PlaceQueries
from pipeline.settings import EntrySettings, Secret, SecretFile, SinkContext, SinkSettings

log = logging.getLogger("recipro-stream")

Sinks = list[SinkSettings]


def open_sinks(
    sinks: Sequence[SinkSettings],
    cameras: Sequence[str],
    overlay: OverlayConfig,
    *,
    painted: bool = False,
    queries: PlaceQueries | None = None,
    setup: CameraSetup | None = None,
) -> list[Sink]:
    """Return the sinks of a configuration, with their secret files read; nothing is opened yet."""
    return [
        build_sink(
            sink, context=make_sink_context(sink, cameras, overlay, painted=painted, queries=queries, setup=setup)
        )
        for sink in sinks
    ]


def make_sink_context(
    sink: SinkSettings,
    cameras: Sequence[str],
    overlay: OverlayConfig,
    *,
    painted: bool = False,
    queries: PlaceQueries | None = None,
    setup: CameraSetup | None = None,
) -> SinkContext:
    """Return the run's data that a sink needs beside its settings."""
    return SinkContext(
        cameras=tuple(cameras),
        secrets=read_secrets(sink),
        display=display_name(),
        colormap=overlay.colormap,
        opacity=overlay.opacity,
        queries=queries,
        setup=setup,
        painted=painted,
    )


def read_secrets(settings: EntrySettings) -> dict[str, Secret]:
    """Return the content of the secret files that the settings name, by field.

    Raises:
        ConfigError: a file cannot be read.
    """
    secrets = {}
    for name, field in type(settings).model_fields.items():
        marks = [mark for mark in field.metadata if isinstance(mark, SecretFile)]
        file = getattr(settings, name)
        if marks and file is not None:
            path = Path(file)
            text = read_secret(path, marks[0].what, marks[0].remedy.format(path=path))
            # A pipe can be read once only; a regular file is read again when it changes.
            secrets[name] = Secret(text, str(path), ChangingFile(path) if path.is_file() else None)
    return secrets


class ChangingFile:
    """Returns the current text of a file; reads it only when it has changed."""

    def __init__(self, path: Path) -> None:
        """Create a reader for the file."""
        self._path = path
        self._mark: tuple[int, int, int] | None = None
        self._text = ""

    def __call__(self) -> str:
        """Return the text. Raises ``OSError`` or ``ValueError`` if it cannot be read."""
        status = self._path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise ValueError(f"{self._path} is no longer a regular file")
        mark = (status.st_mtime_ns, status.st_size, status.st_ino)
        if mark != self._mark:
            self._text = self._path.read_text(encoding="utf-8")
            self._mark = mark
        return self._text


def read_secret(path: Path, what: str, hint: str) -> str:
    """Return the text of a secret file; warn if other users of this machine can read it."""
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        message = getattr(reason, "strerror", None) or "not a text file"
        raise ConfigError(f"{what} file {str(path)!r}: cannot be read ({message}); {hint}") from None
    if os.name == "posix" and mode & 0o077:
        log.warning("%s: other users of this machine may read the %s: chmod 600 %s", path, what, path)
    return text


def apply_option(
    sinks: Sinks, option: str, values: Mapping[str, Any], missing: str, *, options: Mapping[str, str] | None = None
) -> Sinks:
    """Return the sinks; those with ``option`` get ``values``, which their own values precede.

    Args:
        sinks: the sinks.
        option: a field of the settings model of the sinks concerned.
        values: the values by field.
        missing: the message where no sink has ``option``.
        options: the command-line option of each field, for messages; with it, ``values`` take precedence.

    Raises:
        ConfigError: no sink has the option, or a value is wrong.
    """
    if not values:
        return sinks
    if not any(option in type(sink).model_fields for sink in sinks):
        raise ConfigError(missing)
    updated = []
    for sink in sinks:
        own, added = sink.model_dump(exclude_unset=True), values if option in type(sink).model_fields else {}
        updated.append({**added, **own} if options is None else {**own, **added})
    return validate_config({}, "command line", {"sinks": updated}, kinds=KINDS, options=options or {}).sinks


def apply_mqtt_credentials(sinks: Sinks, file: Path | None) -> Sinks:
    """Set the credentials file of every MQTT sink that has none."""
    missing = "--mqtt-credentials: there is no MQTT sink; add --sink mqtt://HOST/TOPIC"
    # ``status_topic`` is an option of MQTT sinks only; other sinks have credentials of their own.
    return apply_option(sinks, "status_topic", {} if file is None else {"credentials_file": str(file)}, missing)


def apply_web_token(sinks: Sinks, token_file: Path | None) -> Sinks:
    """Set the token file of every web page that has none."""
    missing = "--page-token-file: there is no web page; add --sink http://HOST:PORT"
    return apply_option(sinks, "token_file", {} if token_file is None else {"token_file": str(token_file)}, missing)


def apply_page_edit(sinks: Sinks) -> Sinks:
    """Let every web page change the set-up of cameras."""
    missing = "--page-edit: there is no web page; add --sink http://HOST:PORT"
    return apply_option(sinks, "token_file", {"edit": True}, missing)


def apply_recording_options(sinks: Sinks, settings: dict[str, Any]) -> Sinks:
    """Apply the clip options of the command line to all clip sinks; they take precedence."""
    option = "--" + next(iter(settings), "").replace("_", "-")
    missing = f"{option}: there is no sink for clips; add --sink FOLDER/, with the slash"
    options = {key: f"--{key.replace('_', '-')}" for key in settings}
    return apply_option(sinks, "record_when", settings, missing, options=options)


def apply_curve_keys(sinks: Sinks, folder: Path | None, allow: Path | None, *, insecure: bool) -> Sinks:
    """Set the keys of every ``tcp://`` sink that has none, and ``insecure`` of every sink that has the option."""
    from overlays.wire.curve.keys import ALLOWED

    network = [sink for sink in sinks if isinstance(sink, ZeroMqSettings) and sink.uri.lower().startswith("tcp://")]
    without_keys = [sink for sink in network if sink.curve is None]
    if (folder or allow) and not network:
        raise ConfigError("--curve-keys, --allow: there is no sink that uses keys; add --sink tcp://HOST:PORT")
    if allow and not folder and without_keys:
        raise ConfigError(
            "--allow: the stream needs its own keys; create them (run.py keys new DIR), then add --curve-keys DIR"
        )
    updated: Sinks = []
    for sink in sinks:
        change: dict[str, Any] = {"insecure": True} if insecure and "insecure" in type(sink).model_fields else {}
        if folder and sink in without_keys:
            change["curve"] = CurveSettings(
                secret_key_file=str(folder / "server.key_secret"), authorized_keys=str(allow or folder / ALLOWED)
            )
        elif allow and isinstance(sink, ZeroMqSettings) and sink.curve is not None:
            change["curve"] = sink.curve.model_copy(update={"authorized_keys": str(allow)})
        updated.append(sink.model_copy(update=change))
    return updated
