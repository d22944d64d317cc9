"""`run.py why`: explains why a detector finds an object at a place in an image, or does not find it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from commands import options
from commands.console import print_line, relative_path
from commands.options import NETWORK, RUN, drop_none, option
from pipeline.atomic import write_atomically
from pipeline.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from pipeline.frames import Box, Image
    from pipeline.input_area import InputArea, InputAreaOptions
    from pipeline.queries import Influence, PlaceAnswer

_WHOLE_PIXELS: Final = 8.0
"""Side of a place in pixels from which it is written in whole pixels."""


def why(
    image: Annotated[str, typer.Argument(help="The image, or a video with --at.", show_default=False)],
    box: Annotated[str, option(RUN, "The place: LEFT,TOP,WIDTH,HEIGHT in pixels of the image.", "--box")],
    label: Annotated[str, option(RUN, "The class that is or should be there.", "--class")],
    model: options.Model = "yolox_nano",
    weights: options.Weights = None,
    labels: options.Labels = None,
    layout: Annotated[
        str | None,
        option(NETWORK, "Output layout of an ONNX file. Default: detected from the output shapes.", "--layout"),
    ] = None,
    cut: options.Cut = None,
    cell_px: Annotated[
        int | None,
        option(RUN, "Side of a cell in pixels of the input. Default: depends on the pyramid level.", "--cell"),
    ] = None,
    roi: Annotated[
        str | None,
        option(
            RUN, "Region that the detector gets: X,Y,WIDTH,HEIGHT in pixels or fractions. Default: the image.", "--roi"
        ),
    ] = None,
    mask: Annotated[
        list[str] | None,
        option(RUN, "A polygon that is painted over in the input: [[X,Y],[X,Y],[X,Y]]. Repeatable.", "--mask"),
    ] = None,
    at: Annotated[float | None, option(RUN, "Time of the frame in a video, in seconds.", "--at", min=0)] = None,
    output: Annotated[Path | None, option(RUN, "The picture to write, a JPEG. Default: why.jpg.", "--output")] = None,
) -> None:
    """Explain a detector's score at a place of an image: what supports it, and what suppresses it."""
    from commands.wiring.detectors import is_detector, load_configured_detector
    from pipeline.config_loader import validate_config

    if not is_detector(model):
        raise ConfigError(f"model {model!r} is no detector; give an ONNX file of one, or a name such as yolox_nano")
    place = parse_box(box)
    target = output or Path("why.jpg")
    if target.suffix.lower() not in {".jpg", ".jpeg"}:
        raise ConfigError(f"--output {target}: the picture is a JPEG; give a name that ends in .jpg")
    boxes = drop_none({"layout": layout, "cell_px": cell_px, "cut": cut})
    engine = drop_none({"model": model, "weights": weights, "labels": labels, "boxes": boxes or None})
    config = validate_config({}, "command line", {"engine": engine}).engine
    pixels = read_frame(image, at)
    from engine.detectors.runtime import cut_choice
    from engine.detectors.why import explain_place
    from overlays.render.jpeg import encode_image

    is_whole = roi is None and not mask
    area = None if is_whole else parse_area(roi, mask or ()).placed(pixels.shape[1], pixels.shape[0])
    chosen = cut_choice(config.boxes.cut)
    detector = load_configured_detector(config)
    answer = explain_place(detector, pixels, place, label, cut=chosen, cell_px=cell_px, area=area)
    write_atomically(target, encode_image(answer_picture(pixels, answer, place, area), 90), raises=ModelError)
    print_line("\n".join(answer_lines(answer, label)))
    print_line(f"\nSee it:  {relative_path(target)}  (left: keep, right: drop; blue: evidence against)")


def parse_box(text: str) -> Box:
    """Parse a box of the form LEFT,TOP,WIDTH,HEIGHT in pixels.

    Raises:
        ConfigError: the text is not a box, or its width or height is not positive.
    """
    from pipeline.frames import Box

    try:
        left, top, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"box {text!r}: give LEFT,TOP,WIDTH,HEIGHT in pixels, such as 120,80,40,60") from None
    if not (0.0 < width < 1e6 and 0.0 < height < 1e6 and abs(left) < 1e6 and abs(top) < 1e6):
        raise ConfigError(
            f"box {text!r}: width and height must be above 0, and all numbers below a million; give "
            "LEFT,TOP,WIDTH,HEIGHT in pixels"
        )
    return Box(left, top, left + width, top + height)


def parse_area(roi: str | None, masks: Sequence[str] = ()) -> InputAreaOptions:
    """Parse the region and the masks of the input area, in pixels or as fractions of the image.

    Args:
        roi: the region as X,Y,WIDTH,HEIGHT; None: the whole image.
        masks: polygons as JSON lists of [X, Y].

    Raises:
        ConfigError: a text is not a valid region or polygon.
    """
    import json

    from pipeline.input_area import InputAreaOptions, read_polygon, read_roi

    text, name = roi, "roi"
    try:
        rectangle = read_roi(roi)
        polygons = []
        for text in masks:
            name = "mask"
            polygons.append(read_polygon(json.loads(text)))
    except json.JSONDecodeError:
        raise ConfigError(f"--mask {text!r}: should be corners, such as [[0, 0], [0.5, 0], [0, 0.5]]") from None
    except ValueError as reason:
        raise ConfigError(f"--{name} {text!r}: {reason}") from None
    return InputAreaOptions(rectangle, tuple(polygons))


def read_frame(location: str, at: float | None) -> Image:
    """Return the image of a file, or the first frame of a video at or after ``at`` seconds.

    Returns:
        uint8 RGB array of shape (height, width, 3).

    Raises:
        SourceError: the file cannot be read, or the video ends before ``at``.
    """
    import threading

    from commands.images import open_images
    from pipeline.errors import SourceError
    from stream.sources import build_source

    if at is None:
        path, read, _ = open_images(location)
        return read(Path(path))
    with build_source(location) as source:
        for frame in source.frames(threading.Event()):
            if frame.pts_seconds is not None and frame.pts_seconds >= at:
                return frame.image
    raise SourceError(f"{location}: has no frame at {at:g} s; give an earlier --at")


def answer_lines(answer: PlaceAnswer, label: str) -> list[str]:
    """Return the answer as lines of text."""
    is_enough = answer.score >= answer.threshold
    shown = (
        f"is {'enough' if is_enough else 'too low'} for a box: {'from' if is_enough else 'below'} {answer.threshold:g}"
    )
    overlap = f"{answer.overlap:.2f}" if answer.overlap >= 0.005 else "below 0.01"
    anchor = f"the best anchor here (stride {answer.stride}, overlap {overlap})"
    lines = [f"{label}: score {_score_text(answer.score)} at {anchor}, which {shown}"]
    for verb, places in (("supported", answer.supporting), ("suppressed", answer.suppressing)):
        for rank, place in zip(("most", "also", "also"), places, strict=False):
            lines.append(f"{verb} {rank} by the place {_influence_text(place)}")
    return lines


def _score_text(score: float) -> str:
    return f"{score:.3f}" if score >= 0.001 else f"{score:.1e}"


def _influence_text(influence: Influence) -> str:
    box = influence.box
    digits = 0 if min(box.width, box.height) >= _WHOLE_PIXELS else 2
    edges = ",".join(f"{edge:.{digits}f}" for edge in (box.left, box.top, box.width, box.height))
    return f"{edges}: without it the score is {_score_text(influence.score_without)}"


def answer_picture(image: Image, answer: PlaceAnswer, place: Box, area: InputArea | None = None) -> Image:
    """Return the image twice, side by side: with the keep map and with the drop map.

    The maps are shown at full strength whatever the score, because the score of a missed object is low. The place is
    outlined in white.

    Args:
        image: uint8 RGB, (height, width, 3).
        answer: the answer, with its maps.
        place: the place that was asked about.
        area: the input area, which is drawn.
    """
    import numpy as np

    from overlays.render.boxes import draw_boxes, paint_box_heat
    from overlays.render.heatmap import draw_box
    from overlays.render.input_area import draw_input_area
    from pipeline.frames import Explanation, Frame

    frame = Frame(image, "why", 0, 0.0)
    pictures = []
    for finding in answer.maps:
        explanation = Explanation(frame, (finding,), "", "")
        picture = paint_box_heat(image, explanation, 0.6, full_score=0.0)
        if area is not None:
            draw_input_area(picture, area)
        for colour, stroke in (((16, 18, 22), 3), ((255, 255, 255), 1)):
            draw_box(picture, place, colour, stroke)
        draw_boxes(picture, explanation)
        pictures.append(picture)
    return np.concatenate(pictures, axis=1)
