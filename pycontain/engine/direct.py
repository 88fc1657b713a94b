"""A prepared bundle straight through the runtime: no image, network or supervisor, and one process is started."""

from __future__ import annotations

import os
from select import POLLHUP, POLLIN, poll

from pycontain.runtime import lifecycle

_READ = 65536


def run(state: str, bundle: str) -> tuple[int, bytes, bytes, bool]:
    """Run a bundle to its end: (exit status, standard output, standard error, whether memory ran out).

    ``state`` is the runtime's directory. Nothing is left there, also after an error.
    """
    identifier = f"run-{os.urandom(16).hex()}"
    ends: list[int] = []
    try:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        ends.append(null)
        ends += os.pipe2(os.O_CLOEXEC)
        ends += os.pipe2(os.O_CLOEXEC)
        running = lifecycle.create(identifier, bundle, root=state, stdio=(null, ends[2], ends[4]), listen=False)
        try:
            running.start()
        except BaseException:
            lifecycle.delete(identifier, root=state, force=True)
            running.wait()
            raise
        for position in (0, 2, 4):
            os.close(ends[position])
            ends[position] = -1
        output = _drain(ends[1], ends[3])
        status = running.wait()
        oom = status == 137 and lifecycle.stats(identifier, root=state).get("oom_kills", 0) > 0
        lifecycle.delete(identifier, root=state, force=True)
        return status, output[0], output[1], oom
    finally:
        for fd in ends:
            if fd >= 0:
                os.close(fd)


def _drain(first: int, second: int) -> tuple[bytes, bytes]:
    """Everything that is written to two pipes, until both are closed."""
    poller = poll()
    chunks: dict[int, list[bytes]] = {first: [], second: []}
    for fd in chunks:
        poller.register(fd, POLLIN | POLLHUP)
    left = 2
    while left:
        for fd, _ in poller.poll():
            data = os.read(fd, _READ)
            if data:
                chunks[fd].append(data)
            else:
                poller.unregister(fd)
                left -= 1
    return b"".join(chunks[first]), b"".join(chunks[second])
