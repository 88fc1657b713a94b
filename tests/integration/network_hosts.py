"""Hosts made of network namespaces, for the network tests: nothing of the machine's own network is touched.

``in_own_namespace`` runs a test body in a child process with a network namespace of its own, which plays the host.
``Machine`` is another namespace, held by a sleeping process: a neighbour on a wire, or an emulated container.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from pycontain.network import netlink
from pycontain.network.lease import Lease, Network
from pycontain.network.ports import parse_publish

_CLONE_NEWNET = 0x40000000

SERVER = """
import socket, sys, threading
kind, address, port, name = sys.argv[1:]
if kind == "tcp":
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, int(port))); s.listen(); print("ready", flush=True)
    while True:
        c, peer = s.accept(); c.sendall(f"{name} saw {peer[0]}".encode()); c.close()
else:
    s = socket.socket(type=socket.SOCK_DGRAM); s.bind((address, int(port))); print("ready", flush=True)
    while True:
        _, peer = s.recvfrom(100); s.sendto(f"{name} saw {peer[0]}".encode(), peer)
"""

CLIENT = """
import errno, socket, sys
kind, address, port, timeout = sys.argv[1:]
s = socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM); s.settimeout(float(timeout))
try:
    s.connect((address, int(port)))
    if kind == "udp": s.send(b"?")
    print(s.recv(100).decode())
except TimeoutError: print("silence")
except OSError as error: print(errno.errorcode[error.errno])
"""

SENDER = """
import socket, struct, sys
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
for line in sys.stdin:
    s.send(bytes.fromhex(line)); answer = s.recv(65536)
    code = struct.unpack_from("=i", answer, 16)[0]
    if code: sys.exit(f"refused: {code}")
"""


def in_own_namespace(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test in a forked child inside a new network namespace with lo up; its failure is the test's."""

    @functools.wraps(test)
    def wrapper(*arguments: Any, **named: Any) -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            status, text = 0, ""
            try:
                if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "unshare")
                with netlink.Netlink() as kernel:
                    kernel.send(netlink.loopback_up())
                test(*arguments, **named)
            except BaseException:
                status, text = 1, traceback.format_exc()
            finally:
                for machine in list(Machine.alive):
                    machine.close()
            with os.fdopen(writer, "w") as file:
                file.write(text)
            os._exit(status)
        os.close(writer)
        try:
            with os.fdopen(reader) as file:
                text = file.read()
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            status = os.waitpid(pid, 0)[1]
        if status:
            pytest.fail(f"in its own network namespace:\n{text}", pytrace=False)

    return wrapper


class Machine:
    """A network namespace; its processes end with ``close``."""

    alive: list[Machine] = []

    lease: Lease

    def __init__(self, name: str) -> None:
        self.name = name
        # The parent's death ends it, so that a killed test leaves nothing.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "sh", "-c", "echo up; exec sleep 1000"]
        self._processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True)]
        assert self._processes[0].stdout is not None
        assert self._processes[0].stdout.readline() == "up\n"
        self.pid = self._processes[0].pid
        Machine.alive.append(self)

    def command(self, *words: str) -> list[str]:
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", "-n", "-t", str(self.pid), *words]

    def run(self, *words: str, text: str | None = None) -> str:
        return run(*self.command(*words), text=text)

    def serve(self, kind: str, port: int, address: str = "0.0.0.0") -> None:
        """Start an echo server that answers ``<name> saw <client's address>``."""
        process = serve(self.command(), kind, port, address, self.name)
        self._processes.append(process)

    def ask(self, kind: str, address: str, port: int, timeout: float = 2) -> str:
        """What the server said, or the errno's name, or ``silence``."""
        return ask(kind, address, port, timeout, prefix=self.command())

    def configure(self, lease: Lease) -> None:
        """Do init's part: send the lease's messages inside the namespace."""
        lines = "".join(f"{message.hex()}\n" for _, message in lease.netlink)
        self.run(sys.executable, "-c", SENDER, text=lines)

    def join(self, lease: Lease) -> Machine:
        self.lease = lease
        lease.attach(self.pid)
        self.configure(lease)
        return self

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        Machine.alive.remove(self)


def container(network: Network, container_id: str, *publish: str) -> Machine:
    """An emulated container with a lease; its ``name`` is its id."""
    ports = [port for text in publish for port in parse_publish(text)]
    return Machine(container_id).join(network.take(container_id, ports=ports))


def run(*words: str, text: str | None = None) -> str:
    done = subprocess.run(words, input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


def run_json(*words: str) -> Any:
    return json.loads(run(*words) or "[]")


def serve(prefix: list[str], kind: str, port: int, address: str, name: str) -> subprocess.Popen[str]:
    words = [*prefix, sys.executable, "-c", SERVER, kind, address, str(port), name]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ask(kind: str, address: str, port: int, timeout: float = 2, prefix: list[str] | None = None) -> str:
    return run(*(prefix or []), sys.executable, "-c", CLIENT, kind, address, str(port), str(timeout))


def neighbour(name: str = "neighbour", subnet: str = "10.9.0") -> Machine:
    """A machine on a wire with this host: the host is ``<subnet>.1``, the neighbour ``.2`` with a route through us."""
    machine = Machine(name)
    wire = f"w{len(Machine.alive)}"
    run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
    run("ip", "addr", "add", f"{subnet}.1/24", "dev", wire)
    run("ip", "link", "set", wire, "up")
    machine.run("ip", "addr", "add", f"{subnet}.2/24", "dev", "eth0")
    machine.run("ip", "link", "set", "eth0", "up")
    machine.run("ip", "link", "set", "lo", "up")
    machine.run("ip", "route", "add", "default", "via", f"{subnet}.1")
    return machine
