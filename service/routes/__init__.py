"""The routes, by resource. Each module has a `router`."""
