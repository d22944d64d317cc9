"""The interface between the source of industrial cameras and the libraries that speak to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grab:
    """One image as the camera sent it; packed pixels are unpacked, and rows have no padding."""

    pixel_format: str
    """The name of the format in the Pixel Format Naming Convention."""
    data: bytes
    width: int
    height: int
    number: int | None = None
    """The camera's own frame number; None: it states none."""
    stamp_ns: int | None = None
    """The camera's own time in nanoseconds; None: it states none."""


class Device(ABC):
    """A camera that is open. Methods raise ``ConnectionError`` once it is lost."""

    @abstractmethod
    def set_feature(self, name: str, value: str) -> None:
        """Set a feature from its text, or execute a command.

        Raises:
            SourceError: the camera does not have the feature, or the feature cannot have the value.
        """

    @abstractmethod
    def start(self) -> None:
        """Start the acquisition of images."""

    @abstractmethod
    def fetch(self, timeout_seconds: float) -> Grab | None:
        """Return the next complete image; None: there was none within the time."""

    @abstractmethod
    def incomplete(self) -> int:
        """Return the number of images with lost packets so far."""


class Transport(ABC):
    """A library that finds cameras and opens them."""

    @abstractmethod
    def check(self, uri: str) -> None:
        """Raise ``SourceError`` if the library or its files are missing."""

    @abstractmethod
    def opened(self, uri: str, serial: str) -> AbstractContextManager[Device]:
        """Open the camera with this serial number, or the first one if it is empty.

        Raises:
            ConnectionError: the camera is not there, or another program uses it.
        """
