"""The dialogue with init where the first process does not wait for us, and its maker goes on beside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pycontain.runtime import channel
from pycontain.runtime.dialogue import Process
from pycontain.runtime.errors import ChannelClosed, KernelError

PID = 4711
UNSHARED = channel.message(channel.UNSHARED, PID.to_bytes(4, "little"))
READY = channel.message(channel.READY)
FAILED = channel.message(channel.FAILED, bytes(4) + (22).to_bytes(4, "little") + b"syscall(SYS_bpf)")
WORDS = r"^cannot load the device filter \(8 bytes\) on the cgroup: EINVAL"


class Plan:
    ops = [("device_filter", bytes(8), 5)]
    hint = None


class Init:
    """Init's end of the channel; ``process`` is ours, with a stage 0 that does what ``sh -c`` is told."""

    def __init__(self, stage0: str) -> None:
        ours, self.theirs = socket.socketpair()
        plan: Any = Plan
        maker = os.posix_spawn("/bin/sh", ["sh", "-c", stage0], {})
        self.process = Process(lambda: plan, maker, ours.detach())

    def says(self, *messages: bytes) -> None:
        self.theirs.sendall(b"".join(messages))

    def was_told(self) -> list[int]:
        self.theirs.setblocking(False)
        data, told = self.theirs.recv(4096), []
        while data:
            kind, size = channel.header(data[:8])
            told, data = [*told, kind], data[8 + size :]
        return told


@pytest.fixture
def init(request: pytest.FixtureRequest) -> Iterator[Init]:
    it = Init(getattr(request, "param", "exit 0"))
    yield it
    it.process.close()
    it.theirs.close()


@pytest.mark.parametrize("messages", [(UNSHARED, READY), (READY, UNSHARED)])
def test_who_is_faster_is_no_matter(init: Init, messages: tuple[bytes, ...]) -> None:
    init.process.go_soon(b"{}")
    init.says(*messages)
    assert init.process.unshared() == PID
    init.process.go(b"{}", start_too=True)
    assert init.was_told() == [channel.GO, channel.START]


@pytest.mark.parametrize("messages", [(UNSHARED, FAILED), (FAILED, UNSHARED)])
def test_a_failure_ahead_of_its_pid_does_not_hide_that(init: Init, messages: tuple[bytes, ...]) -> None:
    init.process.go_soon(b"{}")
    init.says(*messages)
    assert init.process.unshared() == PID
    with pytest.raises(KernelError, match=WORDS):
        init.process.go(b"{}", start_too=True)


def test_a_failure_without_a_first_process(init: Init) -> None:
    init.process.go_soon(b"{}")
    init.says(FAILED)
    init.theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(KernelError, match=WORDS):
        init.process.unshared()


@pytest.mark.parametrize("init", ["exit 125"], indirect=True)
@pytest.mark.parametrize("messages", [(FAILED,), (READY, FAILED)])
def test_no_program_runs_where_its_maker_failed(init: Init, messages: tuple[bytes, ...]) -> None:
    init.process.go_soon(b"{}")
    init.says(UNSHARED, *messages)
    assert init.process.unshared() == PID
    with pytest.raises(KernelError, match=WORDS):
        init.process.go(b"{}", start_too=True)
    assert init.was_told() == [channel.GO]


@pytest.mark.parametrize("init", ["kill -KILL $$"], indirect=True)
@pytest.mark.parametrize("soon", [True, False])
def test_no_program_runs_where_its_maker_was_killed(init: Init, soon: bool) -> None:
    if soon:
        init.process.go_soon(b"{}")
    init.says(UNSHARED, READY)
    with pytest.raises(ChannelClosed, match="init ended before it had done its part"):
        init.process.unshared()
        init.process.go(b"{}", start_too=True)
    assert channel.START not in (init.was_told() if soon else [])


@pytest.mark.parametrize(
    ("kinds", "ahead"),
    [
        (({"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}), 0),
        (({"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "pid"}), 0x4C000000),
        (({"type": "network"}, {"type": "user"}), 0),
        (({"type": "network"}, {"type": "pid", "path": "/proc/1/ns/pid"}), 0),
        (({"type": "network", "path": ""},), 0x40000000),
        ((), 0),
    ],
)
def test_namespaces_that_init_makes_before_its_plan(kinds: tuple[dict[str, str], ...], ahead: int) -> None:
    from pycontain.runtime.creation import namespaces_ahead

    assert namespaces_ahead({"linux": {"namespaces": list(kinds)}}) == ahead
    assert namespaces_ahead({}) == 0
