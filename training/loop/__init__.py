"""The training loop and its parts: preparation, loss, optimizer, checkpoints, logs."""
