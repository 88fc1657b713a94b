"""The engine as its users have it: a root of its own with an image, the command, and what is left afterwards."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from pycontain.engine import Engine
from pycontain.images import embedded, layout, reference
from tests import machine_tools

ROOT = Path(__file__).parent.parent
IMAGE = "alpine"
_PYTHON_PATH = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])


class Isolation(TypedDict, total=False):
    isolation: str


class Host:
    """An engine below one directory. ``image`` is Alpine where the assets are, else busybox under the same name.

    ``executor``: where the containers of the next commands run, ``namespaces`` of this host or a ``vm`` of their own.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.run_directory = directory / "run"
        self.engine = Engine(str(self.data), str(self.run_directory))
        self.seen: set[str] = set()
        self.executor = "namespaces"

    @property
    def isolation(self) -> Isolation:
        """The executor as the Python API takes it."""
        return {"isolation": "vm"} if self.executor == "vm" else {}

    def seed(self) -> None:
        """Put the image into the store."""
        store = self.engine.images
        assets = os.environ.get("PYCONTAIN_TEST_ASSETS")
        tars = sorted(Path(assets, "images").glob("alpine-minirootfs-*.tar.gz")) if assets else []
        if tars:
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            layout.import_tar(store, str(tars[-1]), reference.parse(IMAGE), config={"Cmd": ["/bin/sh"], "Env": [path]})
        else:
            made = str(embedded.ensure(store))
            store.set_ref(str(reference.parse(IMAGE)), store.get_ref(made))
            store.remove_ref(made)

    def argv(self, *words: str) -> list[str]:
        roots = ["--root", str(self.data), "--run-root", str(self.run_directory)]
        if self.executor == "vm" and words and words[0] in ("run", "create"):
            words = (words[0], "--isolation", "vm", *words[1:])
        return [sys.executable, "-m", "pycontain", *roots, *words]

    @property
    def environment(self) -> dict[str, str]:
        settings = self.directory / "vm.toml"  # never this host's own, nor the suite's: prune clears what they name
        if not settings.exists():
            cache = machine_tools.cache() if self.executor == "vm" else self.directory / "machines"
            machine_tools.settings(self.directory, cache=str(cache))
        own = {"PYTHONPATH": _PYTHON_PATH, "PYCONTAIN_CONFIG": os.devnull}
        return {"PYCONTAIN_VM_CONFIG": str(settings), **os.environ, **own}

    def __call__(
        self, *words: str, input: str | None = None, status: int | None = 0, timeout: float = 50
    ) -> subprocess.CompletedProcess[str]:
        """Run one command line; its exit status has to be ``status`` (None: any)."""
        done = subprocess.run(
            self.argv(*words),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            env=self.environment,
        )
        self.note()
        assert status is None or done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
        return done

    def out(self, *words: str, input: str | None = None, status: int | None = 0) -> str:
        return self(*words, input=input, status=status).stdout

    def note(self) -> None:
        """Remember the containers that exist now, so that what they leave can be named later."""
        with contextlib.suppress(FileNotFoundError):
            self.seen.update(os.listdir(self.data / "containers"))

    def left(self) -> list[str]:
        """Everything on this host that belongs to containers of this engine. [] is what a test wants at its end.

        A supervisor ends a moment after it has said so: what goes away within three seconds does not count.
        """
        end = time.monotonic() + 3
        while (found := self._left()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _left(self) -> list[str]:
        found = []
        for folder in ("containers", "names", "network/pycontain0/leases", "volumes"):
            path = self.data / folder
            if path.is_dir():
                found += [f"{folder}/{name}" for name in os.listdir(path) if not name.startswith(".")]
        for folder in ("containers", "runtime"):
            path = self.run_directory / folder
            if path.is_dir():
                found += [f"run {folder}/{name}" for name in os.listdir(path)]
        found += [f"ingest/{name}" for name in os.listdir(self.data / "images" / "ingest")]
        for base, directories, _ in os.walk("/sys/fs/cgroup"):
            if os.path.basename(base) == "pycontain":
                found += [f"cgroup {base}/{name}" for name in directories if name in self.seen]
                directories.clear()
        with open("/proc/self/mountinfo") as file:
            found += [f"mount {line.split()[4]}" for line in file if str(self.directory) in line]
        found += [f"process {pid}: {text}" for pid, text in _processes() if str(self.directory) in text]
        found += self._links()
        return found

    def _links(self) -> list[str]:
        """Links that are ports of our bridge."""
        path = self.data / "network" / "pycontain0" / "network.json"
        if not path.exists():
            return []
        import json

        bridge = json.loads(path.read_text())["bridge"]
        # Not by /sys, which may show the network namespace of whoever mounted it.
        done = subprocess.run(["ip", "-j", "link", "show", "master", bridge], capture_output=True)
        return [f"link {link['ifname']}" for link in json.loads(done.stdout or b"[]") if link]

    def clear(self) -> None:
        """Remove every container."""
        for container in list(self.engine.containers.all()):
            self("rm", "-f", container.id, status=None)

    def close(self) -> None:
        """Remove every container, and the bridge."""
        self.clear()
        self("system", "prune", "-f", "-a", "--volumes", status=None)
        self.engine.network.destroy()
        shutil.rmtree(self.directory, ignore_errors=True)


def _processes() -> Iterator[tuple[str, str]]:
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    yield pid, file.read().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue


def read_until(fd: int, wanted: bytes, seconds: float = 10) -> bytes:
    """What a terminal shows until ``wanted`` is in it."""
    import select

    data = io.BytesIO()
    end = time.monotonic() + seconds
    while wanted not in data.getvalue():
        left = end - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise AssertionError(f"waited for {wanted!r}, saw {data.getvalue()!r}")
        try:
            part = os.read(fd, 65536)
        except OSError:
            part = b""
        if not part:
            raise AssertionError(f"waited for {wanted!r}, saw {data.getvalue()!r} and then the end")
        data.write(part)
    return data.getvalue()
