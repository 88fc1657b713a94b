"""pycontain: a container runtime and engine, with a small static C init.

    import pycontain
    result = pycontain.run("alpine", ["echo", "hello"], memory="64m")
    print(result.exit_code, result.stdout)

The names below are imported when they are first used, so that ``import pycontain`` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.api import Container, Result, create, exec, pull, run
    from pycontain.runtime.errors import Conflict, KernelError, NotFound, PycontainError, SpecError, Unsupported

__version__ = "0.1.0"

_ERRORS = ("Conflict", "KernelError", "NotFound", "PycontainError", "SpecError", "Unsupported")
_API = ("Container", "Result", "create", "exec", "pull", "run")

__all__ = [
    "Conflict",
    "Container",
    "KernelError",
    "NotFound",
    "PycontainError",
    "Result",
    "SpecError",
    "Unsupported",
    "__version__",
    "create",
    "exec",
    "pull",
    "run",
]


def __getattr__(name: str) -> object:
    if name in _ERRORS:
        from pycontain.runtime import errors

        return getattr(errors, name)
    if name in _API:
        from pycontain import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
