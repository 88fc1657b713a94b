"""What the kernel refused, as this project's error."""

from __future__ import annotations

from pycontain.runtime.errors import KernelError
from pycontain.runtime.light import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Turn an OSError of the block into KernelError("<what>: ENOSPC (...)")."""
    try:
        yield
    except OSError as error:
        raise KernelError(what, error.errno or 0) from error
