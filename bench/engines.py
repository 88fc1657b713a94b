"""The user's commands against each other: ``pycontain run --rm IMAGE true`` and podman's, each with its own network.

Runs where network and mounts are private, so that neither leaves a rule, a bridge or a file of its own behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time

from bench.measure import interleave, proportional_kib, timed
from bench.oci import Result, remove_cgroup

IMAGE = "localhost/bench:latest"
# podman raises limits that a test machine's root may not have.
PODMAN_RUN = ("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096")


class Engine:
    def __init__(self, name: str, command: list[str], options: tuple[str, ...] = ()) -> None:
        self.name = name
        self.command = command
        self.options = options

    def run(self) -> float:
        return timed([*self.command, "run", "--rm", *self.options, IMAGE, "true"])

    def call(self, *arguments: str) -> str:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name} {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def companion_kib(self, companion: str) -> int:
        """Pss of the process that stays with a detached container; ``companion`` is its name."""
        identifier = self.call("run", "-d", *self.options, IMAGE, "sleep", "1000")
        try:
            time.sleep(0.5)
            return sum(proportional_kib(pid) for pid in processes(companion, identifier))
        finally:
            self.call("rm", "-f", identifier)


def processes(name: str, identifier: str) -> list[int]:
    """Processes of that name whose command line or open directory has to do with the container."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as file:
                comm = file.read().strip()
            with open(f"/proc/{pid}/cmdline") as file:
                line = file.read()
        except OSError:
            continue
        if comm == name[:15] and identifier[:12] in line:
            found.append(int(pid))
    if not found:
        raise RuntimeError(f"no process {name} for container {identifier[:12]}")
    return found


def write_image(folder: str) -> str:
    """The root filesystem of the image both run, as a tar archive: the static busybox."""
    busybox = shutil.which("busybox")
    assert busybox
    os.makedirs(f"{folder}/tree/bin")
    for applet in ("busybox", "true", "sleep", "sh"):
        shutil.copy2(busybox, f"{folder}/tree/bin/{applet}")
    subprocess.run(["tar", "-C", f"{folder}/tree", "-cf", f"{folder}/image.tar", "."], check=True)
    return f"{folder}/image.tar"


def suite(ours: str, rounds: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="pycontain-bench.", ignore_cleanup_errors=True) as folder:
        image = write_image(folder)
        os.environ["PYCONTAIN_ROOT"] = f"{folder}/data"
        os.environ["PYCONTAIN_RUN"] = f"{folder}/run"
        place = ["--root", f"{folder}/podman", "--runroot", f"{folder}/podman-run", "--cgroup-manager", "cgroupfs"]
        engines = [Engine("pycontain", [ours]), Engine("podman", ["podman", *place], PODMAN_RUN)]
        companions = {"pycontain": "pycontain-supervisor", "podman": "conmon"}
        absent: dict[str, str] = {}
        for engine in list(engines):
            try:
                engine.call("import", image, IMAGE)
                engine.run()
            except (OSError, RuntimeError) as error:
                absent[engine.name] = str(error)
                engines.remove(engine)
        timings: list[Result] = []
        try:
            for gap in (False, True):
                for series in interleave({engine.name: engine.run for engine in engines}, rounds, idle=gap):
                    timings.append({"discipline": "run --rm IMAGE true", "idle": gap, **series.to_json()})
            pss = {companions[engine.name]: engine.companion_kib(companions[engine.name]) for engine in engines}
        finally:
            for mount in mounts_below(folder):
                subprocess.run(["umount", "-l", mount], check=False)
            remove_cgroup("libpod_parent")
            remove_cgroup("pycontain")
    return {"timings": timings, "companion_pss_kib": pss, "absent": absent}


def mounts_below(folder: str) -> list[str]:
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file]
    return sorted((point for point in points if point.startswith(folder + "/")), reverse=True)
