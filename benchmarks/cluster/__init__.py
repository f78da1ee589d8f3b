"""Several machines that fill one index: Ray's actors, files at addresses, writers of one PostgreSQL.

    python -m benchmarks.cluster.writers
    python -m benchmarks.cluster.encoding --short

Each starts a PostgreSQL of its own (15 or later must be installed), and those with Ray a cluster of one or
two nodes on this machine. They share its processors: seen is what the parts cost, not what machines add.
"""
