"""The interface between the source of industrial cameras and the libraries that speak to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grab:
    """One image of a camera, with unpacked pixels and without row padding."""

    pixel_format: str
    """The name of the format in the Pixel Format Naming Convention."""
    data: bytes
    width: int
    height: int
    number: int | None = None
    """Frame number counted by the camera; None: not sent."""
    stamp_ns: int | None = None
    """Time of the camera's clock in nanoseconds; None: not sent."""


class Device(ABC):
    """An open camera. Its methods raise ``ConnectionError`` after the camera is disconnected."""

    @abstractmethod
    def set_feature(self, name: str, value: str) -> None:
        """Set a feature to ``value``, or execute a command.

        Raises:
            SourceError: the camera has no such feature, or the feature cannot have this value.
        """

    @abstractmethod
    def start(self) -> None:
        """Start the acquisition of images."""

    @abstractmethod
    def fetch(self, timeout_seconds: float) -> Grab | None:
        """Wait for the next complete image; return None after ``timeout_seconds``."""

    @abstractmethod
    def incomplete(self) -> int:
        """Return how many images with lost packets were received."""


class Transport(ABC):
    """A library that finds and opens cameras."""

    @abstractmethod
    def check(self, uri: str) -> None:
        """Raise ``SourceError`` if the library or its files are missing."""

    @abstractmethod
    def opened(self, uri: str, serial: str) -> AbstractContextManager[Device]:
        """Open the camera with this serial number; the first camera if ``serial`` is empty.

        Raises:
            ConnectionError: the camera is not found, or another program uses it.
        """
