"""The towers on a processor, by whatever can compute them: how fast, and how near to PyTorch's float32."""
