"""Patches show what their folder says, and clean ones show no defect."""

import cv2
import numpy as np

from tests.bench.pcb_patches import CLEAN, KINDS, boxes_of, cut, met, patches


def test_patch_contains_one_whole_box_of_its_class_only():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 580, (8, 2))
    boxes = np.hstack([corners, corners + rng.integers(10, 50, (8, 2)), rng.integers(1, 7, (8, 1))])
    chosen = patches(boxes, (640, 640), 96, rng)
    assert any(kind == CLEAN for kind, _, _ in chosen)
    for kind, x, y in chosen:
        inside = met(boxes, x, y, 96)
        assert 0 <= x <= 640 - 96
        if kind == CLEAN:
            assert not len(inside)
        else:
            assert {KINDS[number - 1] for number in inside[:, 4]} == {kind}
            whole = (inside[:, :2] >= (x, y)).all(1) & (inside[:, 2:4] <= (x + 96, y + 96)).all(1)
            assert whole.any()


def test_patches_and_masks_are_written_where_train_and_evaluate_read_them(tmp_path):
    board = np.zeros((640, 640), np.uint8)
    board[100:120, 200:230] = 255
    (tmp_path / "boards").mkdir()
    cv2.imwrite(str(tmp_path / "boards" / "00010001_test.jpg"), board)
    (tmp_path / "boards" / "00010001.txt").write_text("200 100 230 120 3\n" * 3)
    assert boxes_of("").shape == (0, 5)
    counts = cut(tmp_path / "boards", tmp_path / "out", 96, 0)
    assert counts == {"clean": 1, "mousebite": 3}
    for image in (tmp_path / "out" / "parts" / "mousebite").iterdir():
        mask = cv2.imread(str(tmp_path / "out" / "masks" / "mousebite" / image.name), 0)
        assert mask.sum() == 20 * 30 * 255
        shown = cv2.imread(str(image), 0)
        assert shown[mask > 0].mean() > 200
    assert not (tmp_path / "out" / "masks" / "clean").exists()
