"""The training loop and what it consists of: loss, optimizer, checkpoints, logs."""
