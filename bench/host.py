"""The machine that the figures come from, and the views of its cgroups that can be had in a mount namespace."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

# A private mount namespace per view: the machine's own mounts stay as they are.
VIEWS = {
    "host": "true",
    "v1": "umount /sys/fs/cgroup/unified 2>/dev/null || true",
    "v2": "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup",
}


def in_view(view: str, argv: list[str]) -> list[str]:
    """The command that runs ``argv`` where only that version of cgroups is mounted.

    /run, where every contender keeps what it knows of running containers, is a tmpfs, as wherever systemd runs.
    """
    prepare = f'{VIEWS[view]}; mount -t tmpfs -o mode=755 tmpfs /run; exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", prepare, "sh", *argv]


def cgroups() -> str:
    """Which versions are mounted here: v1, v2 or hybrid."""
    with open("/proc/self/mountinfo") as file:
        kinds = {line.partition(" - ")[2].split()[0] for line in file}
    return {(True, True): "hybrid", (True, False): "v1", (False, True): "v2"}.get(
        ("cgroup" in kinds, "cgroup2" in kinds), "none"
    )


def version(command: str) -> str:
    """First line of ``command --version``; "absent" where it is not installed."""
    if shutil.which(command) is None:
        return "absent"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=20)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def facts() -> dict[str, object]:
    with open("/proc/meminfo") as file:
        memory_kib = int(file.readline().split()[1])
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": model,
        "cpus": os.cpu_count(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "cgroups": cgroups(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("runc", "crun", "podman", "conmon")},
    }
