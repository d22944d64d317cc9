"""Options of the command line given to the sinks that they concern, secret files read, and sinks built."""

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
from pipeline.config import OverlayConfig
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError
from pipeline.ports import Sink
from pipeline.settings import EntrySettings, Secret, SecretFile, SinkContext, SinkSettings

log = logging.getLogger("recipro-stream")

Sinks = list[SinkSettings]


def open_sinks(
    sinks: Sequence[SinkSettings], cameras: Sequence[str], overlay: OverlayConfig, *, painted: bool = False
) -> list[Sink]:
    """Return the sinks of a configuration, with their secret files read; nothing is opened yet."""
    return [build_sink(one, context=make_sink_context(one, cameras, overlay, painted=painted)) for one in sinks]


def make_sink_context(
    sink: SinkSettings, cameras: Sequence[str], overlay: OverlayConfig, *, painted: bool = False
) -> SinkContext:
    """Return what the run adds to a sink's settings."""
    return SinkContext(
        cameras=tuple(cameras),
        secrets=read_secrets(sink),
        display=display_name(),
        colormap=overlay.colormap,
        opacity=overlay.opacity,
        painted=painted,
    )


def read_secrets(settings: EntrySettings) -> dict[str, Secret]:
    """Return the texts of the secret files that the settings name, by field.

    Raises:
        ConfigError: a file cannot be read.
    """
    secrets = {}
    for name, field in type(settings).model_fields.items():
        marks = [one for one in field.metadata if isinstance(one, SecretFile)]
        file = getattr(settings, name)
        if marks and file is not None:
            path = Path(file)
            text = read_secret(path, marks[0].what, marks[0].remedy.format(path=path))
            # A pipe gives its text once; a regular file is read again when it changes.
            secrets[name] = Secret(text, str(path), ChangingFile(path) if path.is_file() else None)
    return secrets


class ChangingFile:
    """Returns the present text of a file, and reads it only when it has changed."""

    def __init__(self, path: Path) -> None:
        """Take the file."""
        self._path = path
        self._mark: tuple[int, int, int] | None = None
        self._text = ""

    def __call__(self) -> str:
        """Return the text. Raises ``OSError`` or ``ValueError`` where it cannot be read."""
        status = self._path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block
            raise ValueError(f"{self._path} is no regular file any more")
        mark = (status.st_mtime_ns, status.st_size, status.st_ino)
        if mark != self._mark:
            self._text = self._path.read_text(encoding="utf-8")
            self._mark = mark
        return self._text


def read_secret(path: Path, what: str, hint: str) -> str:
    """Return the text of a secret file, and warn where other users of this machine can read it."""
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        said = getattr(reason, "strerror", None) or "not a text file"
        raise ConfigError(f"{what} file {str(path)!r}: cannot be read ({said}); {hint}") from None
    if os.name == "posix" and mode & 0o077:
        log.warning("%s: other users of this machine may read the %s: chmod 600 %s", path, what, path)
    return text


def apply_option(sinks: Sinks, option: str, values: Mapping[str, Any], missing: str) -> Sinks:
    """Return the sinks with ``values`` given to those that have ``option``, unless they state the values themselves.

    Raises:
        ConfigError: no sink has the option; ``missing`` is the message.
    """
    if not values:
        return sinks
    if not any(option in type(one).model_fields for one in sinks):
        raise ConfigError(missing)
    given = [
        dict(values) | one.model_dump(exclude_unset=True)
        if option in type(one).model_fields
        else one.model_dump(exclude_unset=True)
        for one in sinks
    ]
    return validate_config({}, "command line", {"sinks": given}, kinds=KINDS).sinks


def apply_mqtt_credentials(sinks: Sinks, file: Path | None) -> Sinks:
    """Give the file with user and password to every MQTT sink that has none of its own."""
    missing = "--mqtt-credentials: there is no MQTT sink; add --sink mqtt://HOST/TOPIC"
    return apply_option(sinks, "credentials_file", {} if file is None else {"credentials_file": str(file)}, missing)


def apply_web_token(sinks: Sinks, token_file: Path | None) -> Sinks:
    """Give the token file to every web page that has none of its own."""
    missing = "--page-token-file: there is no web page; add --sink http://HOST:PORT"
    return apply_option(sinks, "token_file", {} if token_file is None else {"token_file": str(token_file)}, missing)


def apply_recording_options(sinks: Sinks, settings: dict[str, Any]) -> Sinks:
    """Give the command line's options of clips to every folder of clips; they take precedence."""
    named = "--" + next(iter(settings), "").replace("_", "-")
    missing = f"{named}: there is no folder of clips; add --sink FOLDER/, with the slash"
    kept = [_without(one, settings) if "record_when" in type(one).model_fields else one for one in sinks]
    try:
        return apply_option(kept, "record_when", settings, missing)
    except ConfigError as wrong:
        text = str(wrong)
        for key in settings:  # the message names the option that was typed, not the key of the sink
            text = text.replace(f"--sink: {key}:", f"--{key.replace('_', '-')}:")
        raise ConfigError(text) from None


def _without(sink: SinkSettings, options: Mapping[str, Any]) -> SinkSettings:
    """Return a sink's settings without what is stated for ``options``."""
    stated = sink.model_dump(exclude_unset=True)
    return type(sink).model_validate({key: value for key, value in stated.items() if key not in options})


def apply_curve_keys(sinks: Sinks, folder: Path | None, allow: Path | None, *, insecure: bool) -> Sinks:
    """Give the keys to every ``tcp://`` sink that has none of its own, and ``insecure`` to every sink that has it."""
    from overlays.wire.curve.keys import ALLOWED

    network = [one for one in sinks if isinstance(one, ZeroMqSettings) and one.uri.lower().startswith("tcp://")]
    wanted = [one for one in network if one.curve is None]
    if (folder or allow) and not network:
        raise ConfigError("--curve-keys, --allow: there is no such sink; add --sink tcp://HOST:PORT")
    if allow and not folder and wanted:
        raise ConfigError(
            "--allow: the stream needs keys of its own; make them (run.py keys new DIR), then --curve-keys DIR"
        )
    made: Sinks = []
    for one in sinks:
        change: dict[str, Any] = {"insecure": True} if insecure and "insecure" in type(one).model_fields else {}
        if folder and one in wanted:
            change["curve"] = CurveSettings(
                secret_key_file=str(folder / "server.key_secret"), authorized_keys=str(allow or folder / ALLOWED)
            )
        elif allow and isinstance(one, ZeroMqSettings) and one.curve is not None:
            change["curve"] = one.curve.model_copy(update={"authorized_keys": str(allow)})
        made.append(one.model_copy(update=change))
    return made
