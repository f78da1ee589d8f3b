"""Two-stage search: candidates from the coarse index, the full score on them, moments and pages."""
