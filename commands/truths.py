"""Where objects lie in a picture, as the files say that the command line names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from commands.terminal import text_of
from pipeline.config import read_yaml
from pipeline.errors import ConfigError
from pipeline.frames import Truth

TruthsOf = Callable[[Path, tuple[int, int]], tuple[Truth, ...]]


def find_truths(boxes: Path | None, names: Path | None) -> TruthsOf | None:
    """Return how to find what a picture holds, by its path and (height, width); None where nobody knows."""
    from engine.evaluation.boxes import coco_boxes, voc_boxes, yolo_boxes
    from engine.networks import read_labels

    if boxes is None:
        return None
    if boxes.is_file():
        known = {Path(name).name: found for name, found in coco_boxes(text_of(boxes), str(boxes)).items()}
        return lambda path, _size: known.get(path.name, ())
    if not any(any(boxes.rglob(f"*{suffix}")) for suffix in (".txt", ".xml")):
        raise ConfigError(f"--boxes {str(boxes)!r}: holds no .txt or .xml; give a COCO JSON file or a folder of those")
    labels: tuple[str, ...] = ()
    if names is not None:
        listed = read_yaml(text_of(names), names.name).get("names") if names.suffix in {".yaml", ".yml"} else None
        ordered = [listed[key] for key in sorted(listed)] if isinstance(listed, dict) else listed
        labels = read_labels(names) if ordered is None else tuple(map(str, ordered))

    def find(path: Path, size: tuple[int, int]) -> tuple[Truth, ...]:
        folders = [path.parent, boxes] if path.resolve().is_relative_to(boxes.resolve()) else [boxes]
        for place in (folder / f"{path.stem}{suffix}" for folder in folders for suffix in (".xml", ".txt")):
            if place.is_file():
                text = text_of(place)
                return (
                    voc_boxes(text, str(place))
                    if place.suffix == ".xml"
                    else yolo_boxes(text, labels, size, str(place))
                )
        return ()

    return find


def read_meaning(class_map: Path | None) -> dict[str, list[int]]:
    """Read which classes of the network a box class stands for; of a file that holds several maps, the first."""
    if class_map is None:
        return {}
    try:
        told = json.loads(text_of(class_map))
        if all(isinstance(one, dict) for one in told.values()):
            told = next(iter(told.values()), {})
        return {str(name): [int(index) for index in indices] for name, indices in told.items()}
    except (ValueError, TypeError, AttributeError) as reason:
        raise ConfigError(f'--class-map {str(class_map)!r}: not of the form {{"car": [817]}} ({reason})') from None
