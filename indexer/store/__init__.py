"""The store: the truth about videos, features and jobs. Nothing here says which database holds it."""
