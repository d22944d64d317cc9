"""Cut board pictures with boxes into labelled patches: ``python tests/bench/pcb_patches.py DEEP_PCB OUT [--side N]``.

For DeepPCB (Tang et al., *Online PCB Defect Detector On A New PCB Defect Dataset*, arXiv:1902.06197): beside each
``*_test.jpg`` lies a text file with ``left top right bottom kind`` a line. Leaves OUT/parts/KIND/BOARD_NUMBER.png for
``run.py train``, patches of KIND ``clean`` that meet no box, and OUT/masks/ with the boxes as masks for ``evaluate``.
A patch holds defects of one kind only. The same seed cuts the same patches. With ``--whole`` it copies the whole boards
to OUT/images instead, with their boxes in OUT/labels and OUT/data.yaml (YOLO): a data set for a detector. Prints one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

KINDS = ("open", "short", "mousebite", "spur", "copper", "pinhole")
CLEAN = "clean"
TRIES = 40

Boxes = npt.NDArray[np.int_]


def boxes_of(text: str) -> Boxes:
    """Read ``left top right bottom kind`` lines: (N, 5)."""
    return np.array([[int(word) for word in line.split()] for line in text.splitlines() if line.strip()]).reshape(-1, 5)


def met(boxes: Boxes, left: int, top: int, side: int) -> Boxes:
    """Return the boxes that a patch touches."""
    apart = (boxes[:, 0] >= left + side) | (boxes[:, 2] <= left) | (boxes[:, 1] >= top + side) | (boxes[:, 3] <= top)
    return boxes[~apart]


def patches(boxes: Boxes, shape: tuple[int, int], side: int, rng: np.random.Generator) -> list[tuple[str, int, int]]:
    """Return (kind, left, top) of one patch for each box that can be had alone of its kind, and as many clean ones."""
    height, width = shape
    chosen: list[tuple[str, int, int]] = []
    for left, top, right, bottom, kind in boxes.tolist():
        low_x, high_x = max(0, right - side), min(left, width - side)
        low_y, high_y = max(0, bottom - side), min(top, height - side)
        if low_x > high_x or low_y > high_y:
            continue
        for _ in range(TRIES):
            x, y = int(rng.integers(low_x, high_x + 1)), int(rng.integers(low_y, high_y + 1))
            if set(met(boxes, x, y, side)[:, 4].tolist()) == {kind}:
                chosen.append((KINDS[kind - 1], x, y))
                break
    remaining = len(chosen) // 3
    for _ in range(TRIES * remaining):
        x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        if remaining and not len(met(boxes, x, y, side)):
            chosen.append((CLEAN, x, y))
            remaining -= 1
    return chosen


def cut(source: Path, out: Path, side: int, seed: int) -> dict[str, int]:
    """Cut every board; return how many patches of each kind were written."""
    counts: Counter[str] = Counter()
    for index, path in enumerate(sorted(source.rglob("*.txt"))):
        board = cv2.imread(str(path.with_name(f"{path.stem}_test.jpg")), cv2.IMREAD_GRAYSCALE)
        if board is None:
            continue
        boxes, rng = boxes_of(path.read_text(encoding="utf-8")), np.random.default_rng((seed, index))
        mask = np.zeros(board.shape, np.uint8)
        for left, top, right, bottom, _ in boxes.tolist():
            mask[top:bottom, left:right] = 255
        for number, (kind, x, y) in enumerate(patches(boxes, (board.shape[0], board.shape[1]), side, rng)):
            for folder, image in (("parts", board), ("masks", mask)):
                if folder == "masks" and kind == CLEAN:
                    continue
                (out / folder / kind).mkdir(parents=True, exist_ok=True)
                name = str(out / folder / kind / f"{path.stem}_{number}.png")
                cv2.imwrite(name, image[y : y + side, x : x + side])
            counts[kind] += 1
    return dict(sorted(counts.items()))


def write_yolo(source: Path, out: Path) -> dict[str, int]:
    """Copy every board beside its boxes as a YOLO data set; return how many boxes of each kind were written."""
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    for path in sorted(source.rglob("*.txt")):
        picture = path.with_name(f"{path.stem}_test.jpg")
        board = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
        if board is None:
            continue
        shutil.copy(picture, out / "images" / picture.name)
        size = np.array(board.shape[::-1])
        lines = []
        for *corners, kind in boxes_of(path.read_text(encoding="utf-8")).tolist():
            low, high = np.array(corners[:2]) / size, np.array(corners[2:]) / size
            lines.append(" ".join((str(kind - 1), *(f"{value:.6f}" for value in (*(low + high) / 2, *(high - low))))))
            counts[KINDS[kind - 1]] += 1
        (out / "labels" / f"{picture.stem}.txt").write_text("\n".join(lines), encoding="utf-8")
    (out / "data.yaml").write_text(json.dumps({"names": dict(enumerate(KINDS))}), encoding="utf-8")
    return dict(sorted(counts.items()))


def main() -> None:
    """Read argv and cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("deep_pcb", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="write whole boards with boxes instead of patches")
    arguments = parser.parse_args()
    if arguments.whole:
        found = {"boxes": write_yolo(arguments.deep_pcb, arguments.out)}
    else:
        found = {
            "side": arguments.side,
            "patches": cut(arguments.deep_pcb, arguments.out, arguments.side, arguments.seed),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
