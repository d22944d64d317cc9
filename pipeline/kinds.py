"""The registry of the kinds of sources or sinks: for each kind its URIs, settings model and factory.

The scheme of a URI, the suffix of a file name, or the whole word selects the kind. Installed packages add kinds by
entry points. Importing a registry imports no third-party library: the module of a kind is imported when the first
source or sink of this kind is built.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Generic, TypeVar
from urllib.parse import unquote

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from pipeline.errors import ReciproStreamError, did_you_mean
from pipeline.settings import EntrySettings

S = TypeVar("S", bound=EntrySettings)

_QUERY: Final = re.compile(r"[a-z_]+=[^&?/]*(?:&[a-z_]+=[^&?/]*)*")
UNKNOWN_OPTION: Final = "unknown_option"
"""The pydantic error type of an option that a kind does not have."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[S]):
    """One kind of source or sink in a registry."""

    name: str
    """Name of the kind in messages and the reference: ``video file``."""
    keys: tuple[str, ...]
    """The URI schemes, suffixes or words of the kind: ``(".mp4", ".mkv")``."""
    settings: type[S]
    """The settings model, which defines every option of the kind."""
    target: str
    """The factory as ``module:name``; it is called with the settings and the context."""
    extra: str = ""
    """Name of the optional dependencies (extra) that the kind needs."""
    is_plugin: bool = False
    """True if an installed package adds the kind."""


def split_query(uri: str, exists: Callable[[str], bool] = os.path.lexists) -> tuple[str, dict[str, str]]:
    """Split a path from its options, as in ``FILE.mp4?crf=28&preset=fast``.

    The query of a network address (``://``) belongs to the server and is kept. An existing path with ``?`` in its name
    is not split. Percent encoding (``%2F``) is decoded in values.

    Args:
        uri: a path, a word or an address.
        exists: returns whether a path exists.

    Raises:
        ValueError: an option is given twice.
    """
    path, mark, tail = uri.rpartition("?")
    if not mark or not path or "://" in path or not _QUERY.fullmatch(tail) or exists(uri):
        return uri, {}
    options: dict[str, str] = {}
    for part in tail.split("&"):
        key, _, value = part.partition("=")
        if key in options:
            raise ValueError(f"option {key} is given twice; give it once")
        options[key] = unquote(value)
    return path, options


@dataclass(frozen=True)
class KindRegistry(Generic[S]):
    """All kinds of sources, or of sinks."""

    word: str
    """``source`` or ``sink``."""
    base: type[S]
    """The options that every kind has."""
    product: type[object]
    """The base class of the objects that factories return: ``pipeline.ports.Source`` or ``Sink``."""
    kinds: Sequence[Kind[S]]
    key_of: Callable[[str], str]
    """Returns the key of a URI without its options."""
    unknown: Callable[[str, list[str]], str]
    """Returns the message for a URI that no kind matches, given the URI and the known keys."""
    shown: Callable[[str], str]
    """Returns a URI without passwords, for messages."""
    error: type[ReciproStreamError]
    """Class of the errors about wrong settings."""
    split: Callable[[str], tuple[str, dict[str, str]]] = field(default=split_query)
    """Splits a URI from the options that follow it."""

    @property
    def group(self) -> str:
        """Name of the entry-point group by which installed packages add kinds."""
        return f"recipro_stream.{self.word}s"

    def plugins(self) -> list[EntryPoint]:
        """Return the entry points of installed packages, except those whose name is a key of a built-in kind."""
        own = {key for kind in self.kinds for key in kind.keys}
        return [entry for entry in entry_points(group=self.group) if entry.name not in own]

    def all_kinds(self) -> Iterator[Kind[S]]:
        """Yield the built-in kinds, then the kinds of installed packages that can be imported."""
        yield from self.kinds
        for entry in self.plugins():
            try:
                yield self._kind_of_plugin(entry)
            except ReciproStreamError:
                continue

    def find(self, uri: str) -> Kind[S]:
        """Return the kind of a URI.

        Raises:
            SourceError | SinkError: no kind has this scheme, suffix or word, or the kind's package cannot be imported.
        """
        key = self.key_of(uri)
        for kind in self.kinds:
            if key in kind.keys:
                return kind
        plugins = self.plugins()
        for entry in plugins:
            if entry.name == key:
                return self._kind_of_plugin(entry)
        known = [key for kind in self.kinds for key in kind.keys]
        raise self.error(self.unknown(uri, known + [entry.name for entry in plugins]))

    def parse(self, entry: Mapping[str, Any]) -> S:
        """Return the settings of one entry of a configuration: a map with ``uri`` and the options of its kind.

        Options that follow a path (``FILE.mp4?crf=28``) become fields of the settings.

        Raises:
            pydantic.ValidationError: an option is unknown, out of range, or belongs to another kind.
            SourceError | SinkError: the URI is of no kind.
        """
        uri = entry.get("uri")
        if not isinstance(uri, str):
            return self.base.model_validate(dict(entry))
        try:
            path, options = self.split(uri)
        except ValueError as error:
            raise self.error(f"{self.word} {self.shown(uri)!r}: {error}") from None
        kind = self.find(path)
        if twice := options.keys() & entry.keys():
            name = min(twice)
            raise self.error(
                f"{self.word} {self.shown(uri)!r}: option {name} is given in the URI and as a key; give it once"
            )
        try:
            return kind.settings.model_validate({**entry, **options, "uri": path})
        except ValidationError as wrong:
            details = [self._explained(error, kind) for error in wrong.errors()]
            raise ValidationError.from_exception_data(kind.settings.__name__, details) from None

    def settings(self, uri: str, **options: Any) -> S:  # noqa: ANN401 - the models check them
        """Return the settings for a URI, with options as keyword arguments.

        Raises:
            SourceError | SinkError: no kind matches the URI, or an option is wrong.
        """
        try:
            return self.parse({"uri": uri, **options})
        except ValidationError as wrong:
            error = wrong.errors()[0]
            location = ".".join(map(str, error["loc"]))
            value = "" if error["type"] == UNKNOWN_OPTION or location == "uri" else f"={error['input']!r}"
            rule = error["msg"].removeprefix("Value error, ")
            raise self.error(f"{self.word} {self.shown(uri)!r}: {location}{value}: {rule}") from None

    def build(self, settings: S, context: object) -> Any:  # noqa: ANN401 - a source or a sink
        """Return the source or sink of these settings; nothing is opened yet.

        Raises:
            SourceError | SinkError: a library is missing, or the factory of an installed package raises an error or
                returns another type of object.
        """
        kind = self.find(settings.uri)
        if not isinstance(settings, kind.settings):  # created without the registry
            settings = self.parse(settings.model_dump(exclude_unset=True))
        made = self._make(kind, settings, context)
        fault = "" if isinstance(made, self.product) else f", which is not a recipro_stream.{self.product.__name__}"
        fault = fault or "".join(
            f" without {name}" for name in self.product.__annotations__ if getattr(made, name, "") == ""
        )
        if fault:
            raise self.error(
                f"{self.word} {self.shown(settings.uri)!r}: the factory ({kind.name}) returns a {type(made).__name__}"
                f"{fault}; see docs/python.md"
            )
        return made

    def _make(self, kind: Kind[S], settings: S, context: object) -> Any:  # noqa: ANN401 - not checked yet
        if kind.is_plugin:
            return self._built_by_plugin(kind, settings, context)
        module, _, name = kind.target.partition(":")
        try:
            return getattr(import_module(module), name)(settings, context)
        except ModuleNotFoundError as missing:
            if not kind.extra:
                raise
            raise self.error(
                f"{self.word} {self.shown(settings.uri)!r}: needs {missing.name}: "
                f"uv sync --inexact --extra {kind.extra}"
            ) from None

    def having(self, option: str) -> list[str]:
        """Return the keys of all kinds that have an option of this name."""
        return [key for kind in self.all_kinds() if option in kind.settings.model_fields for key in kind.keys]

    def _explained(self, error: ErrorDetails, kind: Kind[S]) -> InitErrorDetails:
        """Convert an error for pydantic; the message for an unknown option names the kinds that have the option."""
        reason: str | PydanticCustomError = error["type"]
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
            option = str(error["loc"][0])
            if others := self.having(option):
                message = f"is not an option of a {kind.name} ({', '.join(kind.keys)}); {', '.join(others)} have it"
            else:
                others = [name for other in self.all_kinds() for name in other.settings.model_fields]
                near = did_you_mean(option, kind.settings.model_fields) or did_you_mean(option, others)
                message = f"unknown key.{near}"
            reason = PydanticCustomError(UNKNOWN_OPTION, "{message}", {"message": message})
        return InitErrorDetails(type=reason, loc=error["loc"], input=error["input"], ctx=error.get("ctx", {}))

    def _kind_of_plugin(self, entry: EntryPoint) -> Kind[S]:
        package = entry.dist.name if entry.dist is not None else entry.value
        try:
            model = getattr(entry.load(), "settings_model", self.base)
            if not issubclass(model, self.base):
                raise TypeError(f"settings_model is not a subclass of pipeline.settings.{self.base.__name__}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - a package may raise any exception
            raise self.error(
                f"{self.word} {entry.name}: package {package} cannot be used ({type(error).__name__}: {error}); update "
                "or remove it"
            ) from None
        return Kind(f"{self.word} of {package}", (entry.name,), model, entry.value, is_plugin=True)

    def _built_by_plugin(self, kind: Kind[S], settings: S, context: object) -> Any:  # noqa: ANN401
        entry = next(entry for entry in self.plugins() if entry.name in kind.keys)
        uri = settings.uri
        package = entry.dist.name if entry.dist is not None else entry.value
        try:
            return entry.load()(settings, context)
        except ReciproStreamError:
            raise
        except Exception as error:  # noqa: BLE001 - a package raises anything
            name = type(error).__name__
            # The message of the exception may contain the address, and the address may contain a password.
            message = "message not shown: the address contains a password" if "@" in uri else str(error)
            raise self.error(
                f"{self.word} {self.shown(uri)!r}: package {package} failed to create it ({name}: {message})"
            ) from None
