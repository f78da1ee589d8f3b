"""Checkpoint formats: ours, the official X-CLIP files, open_clip weights, the Hugging Face Hub."""
