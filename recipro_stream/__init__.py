"""The public Python API of recipro-stream.

Programs may rely on the names listed in ``__all__``; every other module of the distribution is internal and may change
without notice. A name is imported when it is first used: ``Viewer`` does not import PyTorch.

    recipro_cam, split_network     the method on tensors: scores and heat maps of any network that can be split
    load_model, NetworkExplainer   a network by name or file, compiled for this machine: frames in, explanations out
    EngineConfig                   the options of ``NetworkExplainer``
    Frame, Explanation, Finding    the data that flows between the parts
    HeatRenderer                   draws an explanation over its frame
    Viewer                         receives the frames that a stream publishes over ZeroMQ
    Source, Sink                   the base classes of sources and sinks that a package adds
    ReciproStreamError             the base class of all errors that are raised on purpose
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.explainers.network import NetworkExplainer
    from engine.methods.recipro import recipro_cam
    from engine.models.loader import load_network as load_model
    from engine.split.network import split_network
    from overlays.render.renderer import HeatRenderer
    from overlays.wire.viewer import Viewer
    from pipeline.config import EngineConfig
    from pipeline.errors import ReciproStreamError
    from pipeline.frames import Explanation, Finding, Frame
    from pipeline.ports import Sink, Source

__all__ = [
    "EngineConfig",
    "Explanation",
    "Finding",
    "Frame",
    "HeatRenderer",
    "NetworkExplainer",
    "ReciproStreamError",
    "Sink",
    "Source",
    "Viewer",
    "__version__",
    "load_model",
    "recipro_cam",
    "split_network",
]

try:
    __version__ = version("recipro-stream")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

_DEFINED_IN = {
    "EngineConfig": "pipeline.config:EngineConfig",
    "Explanation": "pipeline.frames:Explanation",
    "Finding": "pipeline.frames:Finding",
    "Frame": "pipeline.frames:Frame",
    "HeatRenderer": "overlays.render.renderer:HeatRenderer",
    "NetworkExplainer": "engine.explainers.network:NetworkExplainer",
    "ReciproStreamError": "pipeline.errors:ReciproStreamError",
    "Sink": "pipeline.ports:Sink",
    "Source": "pipeline.ports:Source",
    "Viewer": "overlays.wire.viewer:Viewer",
    "load_model": "engine.models.loader:load_network",
    "recipro_cam": "engine.methods.recipro:recipro_cam",
    "split_network": "engine.split.network:split_network",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute of any type
    """Import a public name when it is first used."""
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'recipro_stream' has no attribute {name!r}")
    module, _, symbol = _DEFINED_IN[name].partition(":")
    value = getattr(import_module(module), symbol)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
