"""Reading video files: probing, sampling, decoding in confined child processes."""
