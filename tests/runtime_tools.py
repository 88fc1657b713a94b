"""Bundles for tests, and the OCI command as a user runs it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycontain.runtime.example import EXAMPLE

_INSTALLED = Path(sys.executable).with_name("pycontain-runtime")
COMMAND = [str(_INSTALLED)] if _INSTALLED.exists() else [sys.executable, "-m", "pycontain.runtime.main"]
REPOSITORY = Path(__file__).parent.parent
HIERARCHIES = Path("/sys/fs/cgroup")


def make_rootfs(path: Path) -> Path:
    """Alpine's root file system where the assets are, else busybox and its links."""
    path.mkdir(parents=True)
    assets = os.environ.get("PYCONTAIN_TEST_ASSETS")
    tars = sorted(Path(assets, "images").glob("alpine-minirootfs-*.tar.gz")) if assets else []
    if tars:
        subprocess.run(["tar", "-C", path, "-xpf", tars[-1]], check=True)  # Debian's Python knows no extraction filters
        return path
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "root", "run", "mnt"):
        (path / name).mkdir()
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\n")
    shutil.copy("/bin/busybox", path / "bin/busybox")
    for applet in subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (path / "bin" / applet).symlink_to("busybox")
    return path


def write_bundle(
    path: Path, rootfs: Path, *args: str, change: Callable[[dict[str, Any]], object] | None = None
) -> Path:
    """A bundle that runs ``args`` in ``rootfs``; ``change`` edits its config in place."""
    path.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(EXAMPLE)
    config["process"]["terminal"] = False
    config["process"]["args"] = list(args) or ["true"]
    config["root"] = {"path": str(rootfs)}
    if change is not None:
        change(config)
    (path / "config.json").write_text(json.dumps(config))
    return path


class Runtime:
    """``pycontain-runtime`` with a root of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, *args: object, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs it. Output goes through files: a created container inherits it, and would hold a pipe open."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            options = {"stdout": out, "stderr": err, "stdin": subprocess.DEVNULL, "timeout": 50, **options}
            done = subprocess.run([*COMMAND, "--root", str(self.root), *map(str, args)], text=True, **options)
            out.seek(0)
            err.seek(0)
            done.stdout, done.stderr = out.read(), err.read()
        if check and done.returncode:
            raise AssertionError(f"{args}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def state(self, id: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self("state", id, check=True).stdout)
        return state

    def clean(self) -> None:
        """Delete every container, and prove that nothing of them is left."""
        if not self.root.exists():
            return
        ids = sorted(os.listdir(self.root))
        for id in ids:
            self("delete", "--force", id, check=True)
        assert os.listdir(self.root) == []
        assert left(*ids) == []


def cgroups(id: str) -> list[Path]:
    """The cgroups of container ``id``: one in each hierarchy."""
    # Not with "**": other cgroups come and go while it looks.
    return [path for top in ("", "*/") for path in HIERARCHIES.glob(f"{top}pycontain/{id}")]


def left(*ids: str) -> list[str]:
    """Cgroups and mounts whose name holds one of ``ids``."""
    mounts = Path("/proc/self/mountinfo").read_text()
    found = [str(path) for id in ids for path in cgroups(id)]
    return found + [line for line in mounts.splitlines() if any(f"/{id}/" in line for id in ids)]
