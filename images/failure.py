"""What the kernel refused, as this project's error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pycontain.runtime.errors import KernelError


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Turn an OSError of the block into KernelError("<what>: ENOSPC (...)")."""
    try:
        yield
    except OSError as error:
        raise KernelError(what, error.errno or 0) from error
