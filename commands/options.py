"""Command line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

CAMERA, NETWORK, IMAGE, ACCESS, RUN = "Cameras", "Network", "Picture", "Access control", "Run"
TRUTH = "Annotations"


def option(panel: str, text: str, *names: str, **more: Any) -> Any:  # noqa: ANN401 - typer's own type
    """Return a command line option that the help lists under ``panel``."""
    escaped = text.replace("[", r"\[")  # otherwise, typer reads ``[default: 0]`` as markup
    return typer.Option(*names, rich_help_panel=panel, help=escaped, show_default=False, **more)


def drop_none(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without the values None."""
    return {key: value for key, value in settings.items() if value is not None}


Model = Annotated[str, option(NETWORK, "A name of `run.py models`, any torchvision or timm CNN, or a file.")]
Layer = Annotated[str | None, option(NETWORK, "The explained layer. Default: the last grid.")]
Cut = Annotated[
    str | None,
    option(
        NETWORK, "Masked maps of a detector: complete (default), level, or names of maps, comma-separated.", "--cut"
    ),
]
Kernel = Annotated[str | None, option(NETWORK, "Recipro-CAM's masks: point (default) or gaussian.")]
Mean = Annotated[str | None, option(NETWORK, "R,G,B subtracted from RGB in [0, 1].")]
Std = Annotated[str | None, option(NETWORK, "R,G,B by which RGB is divided after the subtraction of the mean.")]
InputSize = Annotated[str | None, option(NETWORK, "HEIGHTxWIDTH in pixels. Default: the input size of the weights.")]
Fit = Annotated[str | None, option(NETWORK, "Fits a frame to the input size: stretch (default), letterbox or crop.")]
Labels = Annotated[str | None, option(NETWORK, "Class names: a text file, one per line, or a JSON list.")]
Weights = Annotated[str | None, option(NETWORK, "A state dict (.pth, .safetensors). 'random': an untrained network.")]
Target = Annotated[
    str | None,
    option(NETWORK, "Explained classes: top1 (default), top5, names or indices, comma-separated. The first is drawn."),
]
Threads = Annotated[int | None, option(NETWORK, "CPU threads for the network.")]
Workers = Annotated[
    int,
    option(RUN, "Number of processes on this machine. Several processes need Ray. [default: 1]", "--workers", min=1),
]
PageTokenFile = Annotated[Path | None, option(IMAGE, "A file with the token of the http:// page.")]
MqttCredentials = Annotated[Path | None, option(IMAGE, "A file with user:password for the mqtt:// broker.")]
Colormap = Annotated[str | None, option(IMAGE, "Colormap of the heat map. [default: inferno]")]
Opacity = Annotated[float | None, option(IMAGE, "Opacity of the heat map where it is hottest, 0 to 1.")]
Frames = Annotated[int | None, option(RUN, "Stop after this number of frames.", min=1)]
Seconds = Annotated[float | None, option(RUN, "Stop after this number of seconds.", min=0)]
