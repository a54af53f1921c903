"""Timing rows made up, with numbers that are easy to divide."""

import pandas as pd


def in_blocks(sparse, device="cpu:EPYC", hidden=1024, **own):
    """Timing rows of a GRU, 50 steps: (pattern, density) → its milliseconds in fp32 and in int8; dense has 10, 4 and 2."""
    rows = []
    for (pattern, density), took in sparse.items():
        every = {"dense-fp32": 10.0, "dense-int8": 4.0, "own-dense-int8": 2.0} | dict(
            zip(("c-blocks", "c-int8"), took, strict=True)
        )
        for engine, ms in every.items():
            rows.append({
                "task": "", "method": "shape-only", "variant": "", "seed": 0, "device": device, "model": "gru", "hidden": hidden, "input": hidden, "steps": 50,
                "batch": 1, "pattern": pattern, "density": density, "engine": engine, "opponent": "dense-fp32",
                "dtype": "int8" if "int8" in engine else "float32", "median_ms": ms,
                "floor_note": "bytes: 1 B at 2 GB/s; weights 9 B in " + ("L1 (32K)" if engine == "c-int8" else "memory"),
            } | own)  # fmt: skip
    return pd.DataFrame(rows)
