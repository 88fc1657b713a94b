"""The OCI runtimes against each other: one bundle, the same configuration, each verb."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

from bench.measure import interleave, timed

Result = dict[str, object]
_PEAK_RUNS = 15


def write_bundle(folder: str) -> None:
    """A bundle whose root filesystem is the static busybox, with what ``runc spec`` writes as its configuration."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("busybox-static is needed for the bundle: apt-get install busybox-static")
    os.makedirs(f"{folder}/rootfs/bin")
    shutil.copy2(busybox, f"{folder}/rootfs/bin/busybox")
    for applet in ("true", "sleep", "sh"):
        os.link(f"{folder}/rootfs/bin/busybox", f"{folder}/rootfs/bin/{applet}")
    subprocess.run(["runc", "spec", "--bundle", folder], check=True)
    edit(folder, ["/bin/true"])


def edit(folder: str, args: list[str]) -> None:
    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    config["process"].update(args=args, terminal=False)
    config["linux"]["cgroupsPath"] = "/pycontain-bench/container"
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file)


class Runtime:
    """One contender: how its command starts, and a state directory of its own."""

    def __init__(self, name: str, command: str, folder: str, **environment: str) -> None:
        self.name = name
        self.environment = {**os.environ, **environment}
        self.id = f"bench-{name}"
        self.command = [command, "--root", f"/run/{os.path.basename(folder)}/{name}"]
        self.bundle = f"{folder}/bundle"
        self.pid_file = f"{folder}/pid-{name}"

    def _timed(self, arguments: list[str]) -> float:
        return timed([*self.command, *arguments], environment=self.environment)

    def run(self) -> float:
        return self._timed(["run", "--bundle", self.bundle, self.id])

    def create(self) -> float:
        return self._timed(["create", "--bundle", self.bundle, "--pid-file", self.pid_file, self.id])

    def start(self) -> float:
        return self._timed(["start", self.id])

    def exec(self) -> float:
        return self._timed(["exec", self.id, "/bin/true"])

    def delete(self, *options: str) -> float:
        return self._timed(["delete", *options, self.id])

    def create_start_delete(self) -> float:
        spent = self.create() + self.start()
        with open(self.pid_file) as file:
            wait_for_end(int(file.read()))
        return spent + self.delete()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.create()
        try:
            self.start()
            yield
        finally:
            self.delete("--force")

    def peak_kib(self, peak: str) -> int:
        """Median of some runs: where the kernel puts things makes a difference of 100 KiB."""
        command = [peak, *self.command, "run", "--bundle", self.bundle, self.id]
        found = []
        for _ in range(_PEAK_RUNS):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True, env=self.environment
            )
            found.append(int(done.stderr.split()[-1]))
        return sorted(found)[_PEAK_RUNS // 2]


def wait_for_end(pid: int) -> None:
    """Until the process is gone or nobody has asked for its exit status."""
    for _ in range(5000):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] == b"Z":
                    return
        except OSError:
            return
        time.sleep(0.001)
    raise RuntimeError(f"process {pid} did not end within 5 seconds")


def works(runtime: Runtime) -> str | None:
    """None where the runtime can run the bundle here, else what it said."""
    if shutil.which(runtime.command[0]) is None:
        return "not installed"
    command = [*runtime.command, "run", "--bundle", runtime.bundle, runtime.id]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=runtime.environment)
    if done.returncode == 0:
        return None
    subprocess.run([*runtime.command, "delete", "--force", runtime.id], capture_output=True)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def built(folder: str, name: str, *options: str) -> str:
    """A small C program or library of the bench's own, compiled into ``folder``."""
    source = os.path.join(os.path.dirname(__file__), f"{name.partition('.')[0]}.c")
    subprocess.run(["cc", "-O2", *options, "-o", f"{folder}/{name}", source], check=True)
    return f"{folder}/{name}"


def remove_cgroup(name: str) -> None:
    """The empty cgroups that the contenders leave below ``name`` in each hierarchy."""
    for top in ("/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir())):
        for folder, _, _ in os.walk(f"{top}/{name}", topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def suite(ours: str, rounds: int, view: str, warm: Callable[[str], float] | None) -> Result:
    """Every discipline in the view of cgroups that this process sees. ``warm`` runs a bundle from this interpreter."""
    with tempfile.TemporaryDirectory(prefix="pycontain-bench.") as folder:
        write_bundle(f"{folder}/bundle")
        crun = {"LD_PRELOAD": built(folder, "memlock.so", "-shared", "-fPIC")} if view == "v2" else {}
        runtimes = [
            Runtime("pycontain", ours, folder),
            Runtime("runc", "runc", folder),
            Runtime("crun", "crun", folder, **crun),
        ]
        absent = {runtime.name: why for runtime in runtimes if (why := works(runtime)) is not None}
        runtimes = [runtime for runtime in runtimes if runtime.name not in absent]
        if warm is not None:
            try:
                warm(f"{folder}/bundle")
            except Exception as error:  # whatever it is: it is a contender less, not the end of the bench
                absent["pycontain warm"] = f"{type(error).__name__}: {error}"
                warm = None
        timings: list[Result] = []

        def discipline(name: str, contenders: dict[str, Callable[[], float]]) -> None:
            for gap in (False, True):
                for series in interleave(contenders, rounds, idle=gap):
                    timings.append({"discipline": name, "idle": gap, **series.to_json()})

        try:
            runs = {runtime.name: runtime.run for runtime in runtimes}
            if warm is not None:
                runs["pycontain warm"] = functools.partial(warm, f"{folder}/bundle")
            discipline("run", runs)
            discipline("create start delete", {runtime.name: runtime.create_start_delete for runtime in runtimes})
            peak = built(folder, "peak")
            peaks = {runtime.name: runtime.peak_kib(peak) for runtime in runtimes}
            edit(f"{folder}/bundle", ["/bin/sleep", "1000"])
            with contextlib.ExitStack() as stack:
                for runtime in runtimes:
                    # Their own cgroups: they run side by side here.
                    set_cgroup(runtime)
                    stack.enter_context(runtime.running())
                discipline("exec", {runtime.name: runtime.exec for runtime in runtimes})
        finally:
            remove_cgroup("pycontain-bench")
    return {"view": view, "timings": timings, "peak_kib": peaks, "absent": absent}


def set_cgroup(runtime: Runtime) -> None:
    with open(f"{runtime.bundle}/config.json") as file:
        config = json.load(file)
    config["linux"]["cgroupsPath"] = f"/pycontain-bench/{runtime.id}"
    with open(f"{runtime.bundle}/config.json", "w") as file:
        json.dump(config, file)
