"""The coarse index: FAISS structures derived from the store, and their snapshots on disk."""
