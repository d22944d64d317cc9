"""Who may look in and what is recorded, as the command line says it, for every sink that it concerns."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

from commands.console import display_name
from overlays.sinks.options import ClipOptions, MqttOptions, SinkOptions
from pipeline.config import CurveConfig, OverlayConfig, SinkConfig
from pipeline.config_loader import validate_config
from pipeline.errors import ConfigError

log = logging.getLogger("recipro-stream")


def build_sink_options(sink: SinkConfig, overlay: OverlayConfig, *, painted: bool = False) -> SinkOptions:
    """Return what a sink of the configuration is told, its secrets read."""
    mib = 1 << 20
    return SinkOptions(
        clips=ClipOptions(
            rotate_seconds=sink.rotate_seconds,
            rotate_bytes=None if sink.rotate_mib is None else round(sink.rotate_mib * mib),
            budget_bytes=None if sink.disk_budget_mib is None else round(sink.disk_budget_mib * mib),
            when=sink.record_when,
            seconds_before=sink.seconds_before,
            seconds_after=sink.seconds_after,
        ),
        jpeg_quality=sink.quality,
        display=display_name(),
        token=None if sink.token_file is None else _token(Path(sink.token_file)),
        insecure=sink.insecure,
        scale=sink.scale,
        max_rate=sink.max_rate,
        curve_secret_key_file=None if sink.curve is None else sink.curve.secret_key_file,
        curve_authorized_keys=None if sink.curve is None else sink.curve.authorized_keys,
        token_source=_token_source(sink.token_file),
        allowed_hosts=tuple(sink.allowed_hosts),
        embed_origins=tuple(sink.embed_origins),
        root_path=sink.root_path,
        colormap=overlay.colormap,
        opacity=overlay.opacity,
        painted=painted,
        mqtt=_mqtt_options(sink),
    )


def _token(path: Path) -> str:
    """Read the token of the page."""
    return read_secret(path, "token", f"make one: openssl rand -hex 24 > {path}")


def _token_source(file: str | None) -> TokenFile | None:
    """Return what reads the token again; None for a pipe, which gives it once."""
    return TokenFile(Path(file)) if file is not None and Path(file).is_file() else None


class TokenFile:
    """Gives the token that stands in a file now, reading it only when it has changed."""

    def __init__(self, path: Path) -> None:
        """Take the file."""
        self._path = path
        self._mark: tuple[int, int, int] | None = None
        self._text = ""

    def __call__(self) -> str:
        """Return it. Raises ``OSError`` or ``ValueError`` where it cannot be read."""
        told = self._path.stat()
        if not stat.S_ISREG(told.st_mode):  # a pipe would be waited for
            raise ValueError(f"{self._path} is no regular file any more")
        mark = (told.st_mtime_ns, told.st_size, told.st_ino)
        if mark != self._mark:
            self._text = self._path.read_text(encoding="utf-8")
            self._mark = mark
        return self._text


def _mqtt_options(sink: SinkConfig) -> MqttOptions:
    """Return what a broker's sink is told, its password read."""
    if sink.credentials_file is None:
        return MqttOptions(sink.qos, ca_file=sink.ca_file, status_topic=sink.status_topic)
    file = sink.credentials_file
    lines = read_secret(Path(file), "credentials", f"one line, user:password, belongs into {file}").splitlines()
    user, colon, password = lines[0].partition(":") if len(lines) == 1 else ("", "", "")
    if not (user and colon):
        raise ConfigError(f"{file}: should hold one line, user:password")
    return MqttOptions(sink.qos, user, password, sink.ca_file, sink.status_topic)


def read_secret(path: Path, what: str, hint: str) -> str:
    """Read a file of secrets, and say so where others on this machine can read it too."""
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        said = getattr(reason, "strerror", None) or "not a text file"
        raise ConfigError(f"{what} file {str(path)!r}: cannot be read ({said}); {hint}") from None
    if os.name == "posix" and mode & 0o077:
        log.warning("%s: others on this machine may read the %s: chmod 600 %s", path, what, path)
    return text


def apply_mqtt_credentials(sinks: list[SinkConfig], file: Path | None) -> list[SinkConfig]:
    """Give the file of user and password to every broker that has none of its own."""
    if file is None:
        return sinks
    if not any(_is_broker(one) for one in sinks):
        raise ConfigError("--mqtt-credentials: there is no broker to tell them to; add --sink mqtt://HOST/TOPIC")
    return [
        one.model_copy(update={"credentials_file": str(file)})
        if _is_broker(one) and one.credentials_file is None
        else one
        for one in sinks
    ]


def _is_broker(sink: SinkConfig) -> bool:
    return sink.uri.lower().startswith(("mqtt://", "mqtts://"))


def apply_web_token(sinks: list[SinkConfig], token_file: Path | None) -> list[SinkConfig]:
    """Give the token file to every page that has none of its own."""
    if token_file is None:
        return sinks
    pages = [one for one in sinks if one.uri.lower().startswith("http://")]
    if not pages:
        raise ConfigError("--page-token-file: there is no page to ask for it; add --sink http://HOST:PORT")
    return [
        one.model_copy(update={"token_file": str(token_file)}) if one in pages and one.token_file is None else one
        for one in sinks
    ]


def apply_curve_keys(
    sinks: list[SinkConfig], folder: Path | None, allow: Path | None, *, insecure: bool
) -> list[SinkConfig]:
    """Say on every network sink that does not say so itself who may look in."""
    from overlays.wire.curve.keys import ALLOWED

    wanted = [one for one in sinks if one.uri.startswith("tcp://") and one.curve is None]
    if (folder or allow) and not any(one.uri.startswith("tcp://") for one in sinks):
        raise ConfigError("--curve-keys, --allow: there is nothing to look into; add --sink tcp://HOST:PORT")
    if allow and not folder and wanted:
        raise ConfigError(
            "--allow: the stream needs keys of its own too; make them (run.py keys new DIR), then --curve-keys DIR"
        )
    made = []
    for one in sinks:
        change: dict[str, Any] = {"insecure": True} if insecure else {}
        if folder and one in wanted:
            curve = {
                "secret_key_file": str(folder / "server.key_secret"),
                "authorized_keys": str(allow or folder / ALLOWED),
            }
            change["curve"] = CurveConfig(**curve)
        elif allow and one.curve is not None:
            change["curve"] = one.curve.model_copy(update={"authorized_keys": str(allow)})
        made.append(one.model_copy(update=change))
    return made


def apply_recording_options(sinks: list[SinkConfig], settings: dict[str, Any]) -> list[SinkConfig]:
    """Give what the command line says of clips to every folder of them."""
    if not settings:
        return sinks
    named = "--" + next(iter(settings)).replace("_", "-")
    if not any(one.uri.endswith("/") and "://" not in one.uri for one in sinks):
        raise ConfigError(f"{named}: there is no folder of clips; add --sink FOLDER/, with the slash")
    given = [
        one.model_dump(exclude_unset=True) | (settings if one.uri.endswith("/") and "://" not in one.uri else {})
        for one in sinks
    ]
    return validate_config({}, "command line", {"sinks": given}).sinks
