"""The features that the full score reads, in a file derived from the store: one record a segment."""
