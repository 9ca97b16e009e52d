"""Reads a file of `sidelens cache export` with pyarrow, pandas and DuckDB, and chooses rows with DuckDB into a second
file, which `sidelens cache import` takes.

    pip install pyarrow pandas duckdb numpy
    python tools/cache/read.py vectors.parquet chosen.parquet
"""

import sys

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

path, chosen = sys.argv[1:3]

table = pq.read_table(path)
print(table.schema)
print(pq.ParquetFile(path).metadata)

frame = pd.read_parquet(path)
print(frame.drop(columns="vector").head().to_string())
vectors = np.stack(frame["vector"])
assert vectors.dtype == np.float32
assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3), "every vector is of length one"
assert frame["created_at"].dt.tz is not None
assert not frame.duplicated(["key", "model_fingerprint"]).any()

print(
    duckdb.sql(
        f"""SELECT model_fingerprint, CASE source WHEN 'text' THEN 'text' ELSE 'picture' END AS kind,
                   count(*) AS vectors, min(dimensions) AS dimensions, max(created_at) AS latest
            FROM '{path}' GROUP BY ALL"""
    )
)
duckdb.sql(f"COPY (SELECT * FROM '{path}' WHERE source <> 'text') TO '{chosen}' (FORMAT parquet)")
print(duckdb.sql(f"SELECT count(*) AS chosen FROM '{chosen}'"))
