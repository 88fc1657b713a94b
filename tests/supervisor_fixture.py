"""Containers that are only a shell, each with a real supervisor: what the supervisor's tests share."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from pycontain.engine import attach, supervise


class Case:
    """A directory with the files of one container, and the supervisor that serves it."""

    def __init__(self, directory: str, program: str | None = None, env: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.program = program
        self.env = env
        self.exit_path = os.path.join(directory, "exit.json")
        self.pid_file = os.path.join(directory, "supervisor.pid")
        self.log = os.path.join(directory, "log")
        self.socket = os.path.join(directory, "attach.sock")
        self.torn = os.path.join(directory, "torn")
        self.supervisor: supervise.Supervisor | None = None

    def spawn(self, argv: Sequence[str], fds: Sequence[int] = (), **options: Any) -> supervise.Supervisor:
        """Start ``argv`` (an absolute path first) below a supervisor; the container is not named yet."""
        exec_fd = os.open(argv[0], os.O_RDONLY)
        options.setdefault("log_path", self.log)
        options.setdefault("teardown_argv", ["/bin/sh", "-c", f"echo torn >> {self.torn}"])
        if self.env is not None:
            options.setdefault("env", self.env)
        try:
            self.supervisor = supervise.spawn(
                argv,
                fds,
                exec_fd=exec_fd,
                exit_path=self.exit_path,
                pid_file=self.pid_file,
                program=self.program,
                **options,
            )
        finally:
            os.close(exec_fd)
        return self.supervisor

    def shell(self, script: str, *, listen: bool = False, **options: Any) -> supervise.Supervisor:
        """A container that is ``sh -c script``, named and let go."""
        server = supervise.listen(self.socket) if listen else None
        try:
            supervisor = self.spawn(["/bin/sh", "-c", script], attach_listen_fd=server, **options)
        finally:
            if server is not None:
                os.close(server)
        supervisor.started(supervisor.child_pid)
        supervisor.close()
        return supervisor

    def owned(self, script: str, **options: Any) -> socket.socket:
        """The same with an owner; its end of the connection."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.shell(script, owner_fd=theirs.fileno(), **options)
        return ours

    def kill(self) -> None:
        """Whatever is left at the end of a test."""
        if self.supervisor is not None:
            self.supervisor.close()
        found = supervise.read_processes(self.pid_file) if os.path.exists(self.pid_file) else None
        if found is not None:
            supervise.kill(found)
            supervise.kill(found, container=True)

    def wait_gone(self, seconds: float = 10) -> None:
        """Wait until the supervisor, and the teardown that it has become, are gone."""
        found = supervise.read_processes(self.pid_file)
        assert found is not None
        until(lambda: not found.alive(), seconds)

    def wait_exit(self, seconds: float = 10) -> supervise.Exit:
        until(lambda: os.path.exists(self.exit_path), seconds)
        found = supervise.read_exit(self.exit_path)
        assert found is not None
        return found


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that happens soon; AssertionError if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.01)


def hello(sock: socket.socket, flags: int = attach.WANT_OUTPUT, version: int = attach.VERSION) -> None:
    """Say hello by hand."""
    sock.sendall(frame(attach.C_HELLO, version.to_bytes(4, "little") + flags.to_bytes(4, "little")))


def frame(kind: int, payload: bytes = b"") -> bytes:
    return bytes([kind]) + len(payload).to_bytes(4, "little") + payload


def read_frame(sock: socket.socket) -> tuple[int, bytes] | None:
    """The next frame, or None at the end of the connection."""
    header = _exactly(sock, 5)
    if header is None:
        return None
    payload = _exactly(sock, int.from_bytes(header[1:], "little"))
    return None if payload is None else (header[0], payload)


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        try:
            part = sock.recv(size - len(data))
        except ConnectionResetError:
            return None
        if not part:
            return None
        data += part
    return data
