"""Applies command line options to sinks, reads their secret files, and builds the sinks."""

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
    """Read the secret files of the configured sinks, and return the sinks, unopened.

    Args:
        sinks: settings of the sinks.
        cameras: names of the cameras.
        overlay: colormap and opacity of the overlays.
        painted: whether received images already contain heat maps, drawn by another run.
        queries: passes queries of viewers to the network; None: not available.
        setup: lets a page change the run; None: not available.

    Raises:
        ConfigError: a secret file cannot be read.
    """
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
    """Return the data of the run that a sink needs in addition to its settings; arguments as for ``open_sinks``."""
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
    """Return the contents of the secret files that the settings name; the keys are field names.

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
            # A pipe can be read only once; a regular file is read again when it changes.
            secrets[name] = Secret(text, str(path), ChangingFile(path) if path.is_file() else None)
    return secrets


class ChangingFile:
    """Returns the current text of a file; reads the file only after a change."""

    def __init__(self, path: Path) -> None:
        """Create a reader for the file."""
        self._path = path
        self._mark: tuple[int, int, int] | None = None
        self._text = ""

    def __call__(self) -> str:
        """Return the current text.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is not a regular file or not UTF-8.
        """
        status = self._path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise ValueError(f"{self._path} is no longer a regular file")
        mark = (status.st_mtime_ns, status.st_size, status.st_ino)
        if mark != self._mark:
            self._text = self._path.read_text(encoding="utf-8")
            self._mark = mark
        return self._text


def read_secret(path: Path, what: str, hint: str) -> str:
    """Return the text of a secret file; log a warning if other users of this machine can read it.

    Args:
        path: path of the file.
        what: kind of the secret, such as "token", for messages.
        hint: the remedy, for messages.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8 text.
    """
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
    """Return the sinks; set ``values`` on each sink that has the field ``option``.

    Without ``options``, a value that the sink already has is kept.

    Args:
        sinks: the sinks.
        option: a field name; only sinks whose settings model has this field are changed.
        values: the new values; the keys are field names.
        missing: the error message if no sink has ``option``.
        options: the command line option of each field, for messages. If given, ``values`` replace existing values.

    Raises:
        ConfigError: no sink has the option, or a value is invalid.
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
    """Return the sinks; set the credentials file on each MQTT sink without one."""
    missing = "--mqtt-credentials: there is no MQTT sink; add --sink mqtt://HOST/TOPIC"
    # Only MQTT sinks have ``status_topic``; other sinks have ``credentials_file``, too.
    return apply_option(sinks, "status_topic", {} if file is None else {"credentials_file": str(file)}, missing)


def apply_web_token(sinks: Sinks, token_file: Path | None) -> Sinks:
    """Return the sinks; set the token file on each web page without one."""
    missing = "--page-token-file: there is no web page; add --sink http://HOST:PORT"
    return apply_option(sinks, "token_file", {} if token_file is None else {"token_file": str(token_file)}, missing)


def apply_page_edit(sinks: Sinks) -> Sinks:
    """Return the sinks; allow each web page to change the set-up of cameras."""
    missing = "--page-edit: there is no web page; add --sink http://HOST:PORT"
    return apply_option(sinks, "token_file", {"edit": True}, missing)


def apply_recording_options(sinks: Sinks, settings: dict[str, Any]) -> Sinks:
    """Return the sinks; set the command line's clip options on all clip sinks, replacing their own values."""
    option = "--" + next(iter(settings), "").replace("_", "-")
    missing = f"{option}: there is no sink for clips; add --sink FOLDER/, with the slash"
    options = {key: f"--{key.replace('_', '-')}" for key in settings}
    return apply_option(sinks, "record_when", settings, missing, options=options)


def apply_curve_keys(sinks: Sinks, folder: Path | None, allow: Path | None, *, insecure: bool) -> Sinks:
    """Return the sinks; set CURVE keys on each ``tcp://`` sink without them, and ``insecure`` where it exists.

    Args:
        sinks: the sinks.
        folder: folder with ``server.key_secret``.
        allow: file or folder of authorized public keys. None: the default inside ``folder``.
        insecure: set ``insecure`` on each sink that has this option.

    Raises:
        ConfigError: no sink uses keys, or ``allow`` is given for a sink without its own keys.
    """
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
