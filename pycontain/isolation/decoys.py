"""What attacks try to reach: things of the stand-in host's own, each with a text in it that nobody can guess.

The names of decoys are no secret: an attack gets them as arguments, as whoever attacks may know a host well. What is in
them is: to say it is to have been there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from pycontain.isolation.world import World
from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.plan.syscall_tables import numbers

# What the decoy process gets by its standard input, in this order.
_TOLD = ("process_memory", "process_descriptor", "socket_path", "socket_abstract", "socket_tcp",
         "shared_memory_sysv", "shared_memory_posix", "message_queue", "keyring_user")  # fmt: skip
_ELSEWHERE = ("file", "file_handle", "process_seen", "process_environment", "network_capture", "keyring_session",
              "disk", "disk_mount")  # fmt: skip
# Claims that the same decoy is reached by.
_OF = {
    "file": ("file_path", "file_write", "file_proc_root", "file_proc_cwd", "root_escape", "host_namespaces",
             "descriptors", "entering_process"),
    "disk": ("disk_own_node", "disk_given_node"),
    "process_memory": ("process_memory", "process_trace"),
}  # fmt: skip

_LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C0A, 0x4C82  # linux/loop.h
_LO_READ_ONLY, _LO_AUTOCLEAR = 1, 4
_KEYCTL_JOIN_SESSION_KEYRING, _SESSION_KEYRING = 1, -3  # linux/keyctl.h
_AT_FDCWD, _MOST_HANDLE = -100, 128
_DISK_SIZE = 1 << 20


class Decoys:
    """The decoys of a world; they end with it.

    ``arguments``: what the probe ``outcomes`` is told of them. ``secrets``: the text that proves an attack, by the name
    of its claim. ``missing``: why this host has no such decoy, by the name of the claim.
    """

    def __init__(self, world: World) -> None:
        self._id = os.urandom(4).hex()
        self._texts = {name: f"decoy:{name}:{os.urandom(12).hex()}" for name in (*_TOLD, *_ELSEWHERE)}
        self.secrets = dict(self._texts)
        for decoy, claims in _OF.items():
            self.secrets.update(dict.fromkeys(claims, self._texts[decoy]))
        self.missing: dict[str, str] = {}
        self._signals: set[int] = set()
        self._unread = b""
        directory = f"{world.public}/decoys-{self._id}"
        os.mkdir(directory)  # of a world, whose umask is 0022: nothing but isolation is to keep an attack away
        self.arguments = [*self._files(directory), *self._process(world, directory), *self._disk(world)]

    def _files(self, directory: str) -> list[str]:
        for name in ("file", "file_handle"):
            with open(f"{directory}/{name}", "x") as file:
                file.write(f"{self._texts[name]}\n")
        kind, handle = _handle(f"{directory}/file_handle")
        return [f"file={directory}/file", f"near={directory}", f"handle={kind}:{handle.hex()}"]

    def _process(self, world: World, directory: str) -> list[str]:
        own = f"pycontain-decoy-{self._id}"
        names = [f"socket={directory}/socket", f"abstract={own}", f"shm_name=/{own}", f"queue=/{own}"]
        names += [f"shm_key={int(self._id, 16) & 0x7FFFFFFF | 1}", f"user_key={own}"]
        self._decoy = subprocess.Popen(
            [world.probe, "decoy", *names, self._texts["process_seen"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"SECRET": self._texts["process_environment"]},
        )
        world.at_end(self._close)
        assert self._decoy.stdin is not None and self._decoy.stdout is not None
        self._decoy.stdin.write("".join(f"{self._texts[name]}\n" for name in _TOLD).encode())
        self._decoy.stdin.flush()
        line = self._line(20.0)
        if line is None:
            raise PycontainError("the process that attacks are to reach has not started")
        self.missing.update(dict.fromkeys(filter(None, line["lacking"].split(",")), "this kernel has none"))
        found = [f"{name}={int(line[name])}" for name in ("pid", "address", "descriptor", "port")]
        return [*names, *found, f"session_key={self._session_key()}"]

    def _session_key(self) -> str:
        return f"pycontain-session-{self._id}"

    def _line(self, seconds: float) -> dict[str, Any] | None:
        """What the decoy process says next; None where it says nothing in that time, or has ended."""
        assert self._decoy.stdout is not None
        fd = self._decoy.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([fd], [], [], seconds)[0]:
                return None
            some = os.read(fd, 4096)
            if not some:
                return None
            self._unread += some
        text, _, self._unread = self._unread.partition(b"\n")
        line: dict[str, Any] = json.loads(text)
        return line

    def _close(self) -> None:
        assert self._decoy.stdin is not None and self._decoy.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            self._decoy.stdin.close()
        try:
            self._decoy.wait(5)
        except subprocess.TimeoutExpired:
            self._decoy.kill()
            self._decoy.wait()
        self._decoy.stdout.close()

    def signalled(self, cookie: int, seconds: float = 1.0) -> bool:
        """Whether the decoy process got the signal with that value."""
        while cookie not in self._signals:
            line = self._line(seconds)
            if line is None:
                return False
            self._signals.add(int(line["signalled"]))
        return True

    def _disk(self, world: World) -> list[str]:
        """A disk of the host: a loop device, that the kernel lets go with the last descriptor of it."""
        claims = (*_OF["disk"], "disk_mount")
        mke2fs = world.bin("mke2fs")
        image, tree = f"{world.directory}/disk", f"{world.directory}/on-disk"
        with open(image, "xb") as file:
            file.truncate(_DISK_SIZE)
        if mke2fs is None:
            self.missing["disk_mount"] = "mke2fs is not installed"
        else:
            os.mkdir(tree)
            with open(f"{tree}/secret", "x") as secret:
                secret.write(f"{self._texts['disk_mount']}\n")
            made = subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", tree, image])
            if made.returncode:
                self.missing["disk_mount"] = f"mke2fs ended with status {made.returncode}"
        with open(image, "r+b") as file:
            file.write(f"{self._texts['disk']}\n".encode())  # ext4 leaves the first 1024 bytes alone
        try:
            device = _loop_device(image)
        except OSError as error:
            self.missing.update(dict.fromkeys(claims, f"no loop device: {error.strerror}"))
            return []
        world.at_end(os.close, device)
        number = os.fstat(device).st_rdev
        return [f"disk={os.major(number)}:{os.minor(number)}"]

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """While levels are attacked: something goes over the loopback, and this thread has a session keyring with a
        key, which what it starts inherits."""
        over = threading.Event()
        sender = threading.Thread(target=self._send, args=(over,), daemon=True)
        sender.start()
        try:
            if why := _new_session(self._session_key(), self._texts["keyring_session"]):
                self.missing["keyring_session"] = why
            yield
        finally:
            over.set()
            sender.join()

    def _send(self, over: threading.Event) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            while not over.wait(0.02):
                sender.sendto(self._texts["network_capture"].encode(), ("127.0.0.1", 9))  # discard: nobody listens


def _handle(path: str) -> tuple[int, bytes]:
    """name_to_handle_at(2): (type, bytes)."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(struct.pack("Ii", _MOST_HANDLE, 0), 8 + _MOST_HANDLE)
    mount = ctypes.c_int()
    if libc.name_to_handle_at(_AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount), 0):
        raise KernelError(f"name_to_handle_at {path}", ctypes.get_errno())
    size, kind = struct.unpack_from("Ii", buffer.raw)
    return kind, buffer.raw[8 : 8 + size]


def _loop_device(image: str) -> int:
    """A descriptor of a fresh loop device, read-only, that is free again when the last one is closed. Linux 5.8.
    Raises OSError."""
    with open(image, "rb") as backing, open("/dev/loop-control", "rb") as control:
        while True:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)
            # struct loop_config: fd, block size, struct loop_info64 (flags at 52 of its 232 bytes), 8 reserved words
            config = struct.pack("II52xI176x64x", backing.fileno(), 0, _LO_READ_ONLY | _LO_AUTOCLEAR)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                return device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was faster: the next one
                    raise


def _new_session(name: str, secret: str) -> str | None:
    """A new session keyring of this thread with a key in it; why there is none, else None."""
    libc = ctypes.CDLL(None, use_errno=True)
    for call, *arguments in (
        ("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None),
        ("add_key", b"user", name.encode(), secret.encode(), len(secret), _SESSION_KEYRING),
    ):
        if libc.syscall(numbers(os.uname().machine)[call], *arguments) < 0:
            return f"{call}: {os.strerror(ctypes.get_errno())}"
    return None


def make(world: World) -> Decoys:
    """For `World.once`."""
    return Decoys(world)
