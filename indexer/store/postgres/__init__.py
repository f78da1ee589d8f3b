"""The store in PostgreSQL, for several machines: all SQL of it is here."""
