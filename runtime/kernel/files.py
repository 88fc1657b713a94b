"""The small files by which the kernel is asked and told, in /proc and /sys."""

from __future__ import annotations

import posix as os


def write(path: str, value: str) -> None:
    """One write(2) of ``value`` to an existing file; OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode("utf-8", "surrogatepass"))  # JSON may hold halves of characters; no file takes them
    finally:
        os.close(fd)


def read(path: str) -> str:
    """The whole of a small kernel file; OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
    finally:
        os.close(fd)
    return b"".join(chunks).decode(errors="replace")


_U64 = (1 << 64) - 1  # a guest may say more, and nobody can count with it


def read_int(path: str) -> int | None:
    """The number in a file; None for ``max``, for a file that is not there and for anything else."""
    try:
        return number(read(path))
    except OSError:
        return None


def number(text: str | None) -> int | None:
    """The number that a file's text is; None for ``max``, for no text and for anything else."""
    try:
        return min(int(text or ""), _U64)
    except ValueError:
        return None


def read_table(path: str) -> dict[str, int]:
    """A flat-keyed file (``key value`` lines) as a dict; {} if it is not there."""
    try:
        return table(read(path))
    except OSError:
        return {}


def table(text: str | None) -> dict[str, int]:
    """The ``key value`` lines of a file's text; {} where there is none or it is something else."""
    found = {}
    try:
        for line in (text or "").splitlines():
            key, _, value = line.rpartition(" ")
            found[key] = min(int(value), _U64)
    except ValueError:
        return {}
    return found
