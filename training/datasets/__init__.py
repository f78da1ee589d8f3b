"""Captioned videos for training and evaluation: the five benchmarks of the paper, and the user's own.

`training.datasets.split` holds what every loader returns. Nothing here decodes a frame.
"""
