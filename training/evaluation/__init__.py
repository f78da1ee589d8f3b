"""Evaluation of a checkpoint on a captioned data set: features, similarities, protocols, tables.

`evaluation.evaluate_split` is what validation during training calls; `evaluation.evaluate_fully` is what
`xclip-search evaluate` adds: two-stage rows, normalisations and the paper's own figures. The metrics
themselves are in `metrics`. Importing the package loads nothing heavy.
"""

DEFAULT_CANDIDATES = (50, 100, 200, 500)
"""Sizes of shortlists for two-stage rows."""

BANK_EXTRAS = ("query-bank", "nearest-neighbour")
EXTRAS = ("dual-softmax", *BANK_EXTRAS)
"""Further rows that an evaluation can have; those of BANK_EXTRAS need a bank of queries."""

DEFAULT_BANK_SIZE = 5000
"""Most queries of a bank: a bank costs as much as that many test texts."""
