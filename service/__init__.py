"""The HTTP service: search, uploads, jobs and the page.

This package turns requests into calls of the indexer and answers into JSON. FastAPI lives here. It may import
`indexer` and `model`, never `training`. Importing it is cheap: models are loaded when an application starts.
The environment is read here alone, in `service.settings`.
"""
