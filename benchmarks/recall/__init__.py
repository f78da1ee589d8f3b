"""Programs that compare what a search finds with what an exhaustive one would: stages and coarse index."""
