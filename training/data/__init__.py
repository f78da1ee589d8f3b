"""From annotated clips to batches: frames, their cache, splits and loading."""
