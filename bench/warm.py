"""A prepared bundle, run by the Python API from this interpreter: what an orchestrator in Python pays."""

from __future__ import annotations

import time


def run(bundle: str) -> float:
    """Milliseconds of one ``pycontain.run(bundle=...)``, from the call until the container is gone."""
    import pycontain

    start = time.perf_counter()
    result = pycontain.run(bundle=bundle)
    spent = (time.perf_counter() - start) * 1000
    if result.exit_code != 0:
        raise RuntimeError(f"pycontain.run(bundle={bundle!r}): exit status {result.exit_code}: {result.stderr!r}")
    return spent
