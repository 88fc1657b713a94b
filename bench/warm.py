"""A prepared bundle, run by the Python API from this interpreter: what an orchestrator in Python pays."""

from __future__ import annotations

import time


def run(bundle: str) -> float:
    """Milliseconds of one ``pycontain.run(bundle=...)``, from the call until the container is gone."""
    import pycontain

    start = time.perf_counter()
    status = pycontain.run(bundle=bundle)
    spent = (time.perf_counter() - start) * 1000
    if status != 0:
        raise RuntimeError(f"pycontain.run(bundle={bundle!r}): exit status {status}")
    return spent
