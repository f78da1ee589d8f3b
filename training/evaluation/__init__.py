"""Judging a checkpoint on a captioned data set: features, similarities, protocols, tables.

`protocol.evaluate_split` is what validation during training calls; `xclip-search evaluate` adds the two-stage
row, normalisations and the paper's own figures. Retrieval metrics themselves are in
`training.evaluation.metrics`.
Importing the package loads nothing heavy.
"""
