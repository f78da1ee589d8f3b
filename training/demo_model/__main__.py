"""`python -m training.demo_model train | evaluate`."""

from __future__ import annotations

from training.demo_model.cli import app

app(prog_name="python -m training.demo_model")
