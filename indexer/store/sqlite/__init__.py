"""The store in one SQLite file, the catalog. All SQL of the project is below this folder."""
