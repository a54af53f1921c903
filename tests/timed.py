"""Timing rows made up, with numbers that are easy to divide."""

import pandas as pd


def in_blocks(sparse, device="cpu:EPYC", hidden=1024, **own):
    """Timing rows of a GRU, 50 steps: (pattern, density) → its milliseconds in fp32 and in int8; dense has 10, 4 and 2."""
    same = {
        "task": "",
        "model": "gru",
        "method": "shape-only",
        "variant": "",
        "seed": 0,
        "device": device,
        "opponent": "dense-fp32",
    }
    same |= {"hidden": hidden, "input": hidden, "steps": 50, "batch": 1}
    rows = []
    for (pattern, density), (fp32, int8) in sparse.items():
        every = {"dense-fp32": 10.0, "dense-int8": 4.0, "own-dense-int8": 2.0, "c-blocks": fp32, "c-int8": int8}
        for engine, ms in every.items():
            one = {"pattern": pattern, "density": density, "engine": engine, "median_ms": ms}
            one |= {"dtype": "int8" if "int8" in engine else "float32"}
            one |= {
                "floor_note": f"bytes: 1 B at 2 GB/s; weights 9 B in {'L1 (32K)' if engine == 'c-int8' else 'memory'}"
            }
            rows.append(same | one | own)
    return pd.DataFrame(rows)
