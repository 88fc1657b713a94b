"""Errors: what was tried, on which object, what the kernel said, and one hint; and the kernel's numbers for it.

This module imports nothing of ours, so that every room may import it. The modules of the start path name what is here
through the module (``errors.Conflict``), in branches that are rarely taken: there (start.py) it runs when it is first
asked for something. Ten classes and the numbers take 0.4 ms.
"""

from __future__ import annotations

import errno
from errno import EACCES as EACCES
from errno import EBUSY as EBUSY
from errno import EINVAL as EINVAL
from errno import ENODEV as ENODEV
from errno import ENOENT as ENOENT
from errno import ENOTEMPTY as ENOTEMPTY
from errno import EOPNOTSUPP as EOPNOTSUPP
from errno import EPERM as EPERM
from errno import EROFS as EROFS
from posix import strerror


class PycontainError(Exception):
    """Base of every error that a face prints.

    ``message`` says what was tried, on which object, and what was found (lower case, no full stop);
    ``hint`` is one pasteable next step or None; ``exit_code`` is what a command ends with.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class KernelError(PycontainError):
    """The kernel refused an operation; ``errno`` is kept."""

    def __init__(self, tried: str, errno: int, *, hint: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(f"{tried}: {errno_text(errno)}", hint=hint, exit_code=exit_code)
        self.errno = errno


class SpecError(PycontainError):
    """A configuration is malformed; ``path`` is the JSON path that the user wrote (``$.process.args[0]``)."""

    def __init__(self, path: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {problem}", hint=hint)
        self.path = path


class Unsupported(PycontainError):
    """Asked for by name, and not built here or not possible on this host; never silently ignored."""


class NotFound(PycontainError):
    """No such container, image, network or file."""


class Conflict(PycontainError):
    """The object exists already, is in use, or is in the wrong state for the verb."""


class KernelErrorText(KernelError):
    """A KernelError whose text is complete already."""

    def __init__(self, message: str, errno: int, *, hint: str | None = None, exit_code: int | None = None) -> None:
        PycontainError.__init__(self, message, hint=hint, exit_code=exit_code)
        self.errno = errno


class HookFailed(KernelErrorText):
    """A hook ended badly, or could not be run: the container has to end too (runtime.md, "Lifecycle")."""


class ChannelClosed(PycontainError):
    """Init closed the channel, or said nothing in time, where a message was due."""


class Nonsense(ChannelClosed):
    """What came is no message, or is not the one that was due."""


def errno_text(number: int) -> str:
    """``ENOENT (no such file or directory)`` for 2; the bare number where the C library knows no name."""
    name = errno.errorcode.get(number)
    if name is None:
        return f"errno {number}"
    return f"{name} ({strerror(number).lower()})"
