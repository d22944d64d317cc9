"""The example of docs/detectors.md runs with the real detector."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
(EXAMPLE,) = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "detectors.md").read_text(encoding="utf-8"), re.DOTALL
)  # fmt: skip


@pytest.mark.slow
def test_the_example_explains_a_box(shared_data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    weights = shared_data / "weights" / "detectors" / "yolox_nano.onnx"
    if not weights.is_file():
        pytest.skip(f"needs {weights.name} beside the repository")
    (tmp_path / weights.name).symlink_to(weights)
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "docs/detectors.md", "exec"), {})  # noqa: S102 - the documentation's own example
    assert "'t781', 't841', 't886'" in capsys.readouterr().out
