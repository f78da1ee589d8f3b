"""Reading videos: what decoding costs, odd files, long films, libraries that have not changed."""
