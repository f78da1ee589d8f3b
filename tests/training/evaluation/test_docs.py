"""What docs/evaluation.md shows in Python runs as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from tests.support.video_files import write_coloured_video

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"


def test_the_examples_in_python_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    rows = []
    for name, colour in (("one", (220, 30, 30)), ("two", (30, 40, 220))):
        write_coloured_video(tmp_path / "clips" / f"{name}.mp4", colour, 2.0)
        rows.append({"path": f"clips/{name}.mp4", "caption": f"number {name}"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert names["scores"].total.shape == (3, 2)
    assert torch.isfinite(names["scores"].total).all()
    assert (names["result"].num_texts, names["result"].num_clips) == (2, 2)
