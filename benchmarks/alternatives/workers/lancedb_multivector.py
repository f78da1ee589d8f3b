"""LanceDB: the frames of a video as one multivector, late interaction by its own engine. FOLDER SCRATCH KIND.

KIND: `exact` looks at all; `index` builds its index with the defaults and lets it refine what it finds.
"""

import sys
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
from protocol import serve

ROWS_AT_ONCE = 2_000


def build():
    """Load what is there; the function that answers."""
    folder, scratch, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    frames = np.load(folder / "frames.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    dimension = frames.shape[2]
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.list_(pa.float32(), dimension)))])

    def batches():
        for start in range(0, len(frames), ROWS_AT_ONCE):
            some = frames[start : start + ROWS_AT_ONCE].astype(np.float32)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(some.ravel()), dimension)
            offsets = pa.array(np.arange(len(some) + 1, dtype=np.int32) * some.shape[1])
            vectors = pa.ListArray.from_arrays(offsets, flat)
            ids = pa.array(np.arange(start, start + len(some)))
            yield pa.RecordBatch.from_arrays([ids, vectors], schema=schema)

    table = lancedb.connect(scratch).create_table("frames", batches(), schema=schema)
    if kind == "index":
        table.create_index(metric="cosine", vector_column_name="vector")

    def ask(number):
        search = table.search(queries[number : number + 1], vector_column_name="vector").metric("cosine")
        if kind == "index":
            search = search.nprobes(20).refine_factor(10)
        return search.select(["id"]).limit(10).to_arrow()["id"].to_pylist()

    return ask, {}


serve(build, ["lancedb"])
