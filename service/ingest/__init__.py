"""How a video gets in over HTTP: uploads, the media store, the worker and its process."""
