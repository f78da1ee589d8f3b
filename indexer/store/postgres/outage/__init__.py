"""While the database does not answer: noticing it, and reading what this machine keeps."""
