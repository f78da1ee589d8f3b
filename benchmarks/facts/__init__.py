"""Programs whose figures are no times: differences to the official code, sizes, structure."""
