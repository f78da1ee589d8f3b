"""What can go wrong in this room.

TrainingError
├── ConfigError    a training config that cannot be meant
├── DatasetError   annotations or videos that are missing or not as their layout says
├── RunError       a run directory that cannot be continued
└── EvaluationError  scores that cannot be judged
"""

from __future__ import annotations


class TrainingError(Exception):
    """Anything that this room refuses. The message says what to do; it is shown without a traceback."""


class ConfigError(TrainingError):
    """A training config that cannot be meant: an unknown field, a value out of range, two that contradict."""


class DatasetError(TrainingError):
    """Annotations or videos that are missing, unreadable or not as their layout says."""


class RunError(TrainingError):
    """A run directory that cannot be continued: another config, another data order, a damaged checkpoint."""


class EvaluationError(TrainingError):
    """Scores that cannot be judged: not finite, or not one row a text and one column a video."""
