"""What a host is: all that figures of two hosts may differ by."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from typing import Any

from pycontain import __version__
from pycontain.runtime.kernel import hierarchies
from pycontain.runtime.vm import accel, settings

# A run is not gone on with where one of these has changed.
LASTING = ("cpu", "cpus", "memory", "kernel", "architecture", "mitigations", "cgroups", "versions")
_PEERS = ("runc", "crun", "runsc")
_SECONDS = 20.0


def collect() -> dict[str, Any]:
    """The facts of this host, as plain data; None for one that it does not have or does not tell.

    ``memory``: bytes; ``mitigations``: of each weakness of the processor, as the kernel has it
    (Documentation/ABI/testing/sysfs-devices-system-cpu); ``load``: the mean of the last minute (proc_loadavg(5));
    ``nested``: whether the host is a virtual machine itself, as far as its processor says so.
    """
    found = settings.load({})
    cpu = _processor()
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": os.uname().release,
        "architecture": os.uname().machine,
        "mitigations": mitigations(),
        "cgroups": hierarchies.detect(),
        "accelerator": _accelerator(found),
        "nested": "hypervisor" in cpu.get("flags", "").split(),
        "lsm": _read("/sys/kernel/security/lsm"),
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load": os.getloadavg()[0],
        "versions": {
            "pycontain": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PEERS},
            "qemu": version(found.hypervisor),
        },
    }


def changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Which of the lasting facts differ, in words: ``kernel: 6.1 then, 6.2 now``."""
    lines = []
    for name in LASTING:
        before, after = then.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            lines += [f"{name} of {key}: {before.get(key)} then, {after.get(key)} now" for key in keys]
        elif before != after:
            lines.append(f"{name}: {before} then, {after} now")
    return lines


def mitigations(directory: str = "/sys/devices/system/cpu/vulnerabilities") -> dict[str, str]:
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return {}
    return {name: _read(os.path.join(directory, name)) or "" for name in names}


def version(program: str) -> str | None:
    """What ``program --version`` says behind the word "version"; None where there is no such program."""
    if shutil.which(program) is None:
        return None
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not known: {error}"
    found = re.search(r"\bversion:?\s+(\S+)", done.stdout)
    return found[1].rstrip(",") if found else f"not known: {program} --version ended with {done.returncode}"


def _accelerator(found: settings.Settings) -> str | None:
    """What machines get, and why, without the times of that trial; None where that was not found out yet."""
    verdict = accel.known(found)
    return None if verdict is None else f"{verdict.accel} ({re.sub(r' after [0-9.]+ s', '', verdict.reason)})"


def _processor() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    with open("/proc/cpuinfo") as file:
        for line in file:
            name, colon, value = line.partition(":")
            if not colon:
                break
            fields[name.strip()] = value.strip()
    return fields


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:  # not mounted, or no such thing on this kind of host
        return None
