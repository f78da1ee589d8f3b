"""A served index under load, and the clients that put it there."""
