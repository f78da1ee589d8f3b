"""What an operator does to a whole index: verify, back up, export, import, reindex."""
