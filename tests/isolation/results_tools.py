"""Results that nobody measured: every kind of record, eleven levels, values over six decades; for what reads results."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from typing import Any

from pycontain.isolation import results

LEVELS = {
    "process": ("process", 0.12, 0.0), "chroot": ("chroot", 0.12, 0.3), "container": ("container", 0.85, 9.0),
    "container-noseccomp": ("container without seccomp", 0.7, 8.5), "hardened": ("hardened container", 0.93, 12.0),
    "rootless": ("rootless container", 0.9, 24.0), "runc": ("container by runc", 0.85, 31.0), "crun": ("container by crun", 0.85, 11.0),
    "runsc": ("container by gVisor's runsc", 0.97, 260.0), "vm-tcg": ("microVM, emulated (TCG)", 0.98, 640.0), "vm-kvm": ("microVM with KVM", 0.98, 180.0),
}  # fmt: skip
MISSING = {"vm-kvm": "/dev/kvm answers, but a guest does not boot within 5 s"}

# (name, title, unit, better, magnitude at "process", factor at the slowest level)
QUANTITIES: list[tuple[str, str, str, str, float, float]] = [
    ("surface.syscalls.allowed", "System calls that are allowed", "calls", "lower", 340, 1),
    ("surface.syscalls.reached", "Distinct system calls that reach the host's kernel", "calls", "lower", 60, 1.4),
    ("surface.functions", "Kernel functions reached", "functions", "lower", 5210, 0.8),
    ("surface.proc.visible", "Files to be seen under /proc", "files", "lower", 21034, 0.1),
    ("surface.sys.writable", "Files that can be opened for writing under /sys", "files", "lower", 3307, 0),
    ("surface.capabilities", "Capabilities", "capabilities", "lower", 41, 0),
    ("surface.devices", "Devices that can be opened", "devices", "lower", 187, 0.05),
    ("start.first", "Start: command to first instruction", "ms", "lower", 1.1, 600),
    ("start.total", "Start: command to exit, cleared up", "ms", "lower", 1.6, 640),
    ("start10.first", "Ten at once, until the last has ended", "ms", "lower", 11, 700),
    ("start50.first", "Fifty at once, until the last has ended", "ms", "lower", 52, 800),
    ("exec.first", "Another program in a running container", "ms", "lower", 1.0, 90),
    ("idle.pss", "Memory of an idle instance (Pss)", "KiB", "lower", 112, 900),
    ("idle.fit", "Idle instances that fit in 1 GiB", "instances", "higher", 8900, 0.002),
    *((f"syscall.{call}", f"System call: {call}", "ns", "lower", size, 120) for call, size in (
        ("getpid", 62), ("read", 110), ("open", 910), ("stat", 640), ("fork", 61000), ("mmap.4k", 1400), ("mmap.1m", 61000), ("futex", 1300), ("pipe", 3800), ("switch", 4100))),
    *((f"file.{what}", f"File I/O: {what}, page cache warm", "MiB/s", "higher", size, 0.1) for what, size in (("sequential.read", 3100), ("sequential.write", 890), ("random.read", 310), ("random.write", 120))),
    ("network.bandwidth", "Network bandwidth, one stream", "Gbit/s", "higher", 34.2, 0.003),
    ("network.latency", "Network round trip of one byte", "us", "lower", 21, 60),
    ("cpu.sha", "CPU: rounds of a hash in a second", "rounds/s", "higher", 2.3e6, 0.05),
    ("memory.bandwidth", "Memory bandwidth (copy of 64 MiB, caches cold)", "GiB/s", "higher", 9.3, 0.15),
    ("work.compile", "A compiler run: the time of a small C program from source to executable, linker included", "s", "lower", 0.61, 25),
    ("work.database", "A database: transactions", "1/s", "higher", 41000, 0.03),
    ("work.web", "A web server: requests", "1/s", "higher", 18200, 0.02),
    ("timer.drift", "Difference of two clocks", "us", "neither", 0.4, 2),
    *((f"interference.{hog}.{part}", f"Victim beside a {hog} hog: {part} against none", "x", "lower", size, 0.6) for hog, size in (("cpu", 3.1), ("memory", 2.2), ("io", 8.0), ("fork", 4.4), ("network", 1.9)) for part in ("p50", "p99")),
    *((f"interference.cpu.alone.{part}", "The victim alone", "us", "lower", size, 10) for part, size in (("p50", 51), ("p99", 330))),
    *((f"extra.micro.{index}", f"A small thing of which there are many, number {index}", "ns", "lower", 10.0**index, 3) for index in range(1, 7)),
]  # fmt: skip

KINDS = ("files", "processes", "kernel", "devices", "namespaces", "exhaustion")
WORDS = ("read a file of the host", "see a process of the host", "signal it", "load a module", "mount a disk", "write to core_pattern", "change the clock")
HOSTILE = "<script>alert(1)</script>\"'&\u202e \x1b[31m http://example.invalid/?a=1&b=2 ]]> --></style>"


def group(quantity: str) -> str:
    head = quantity.partition(".")[0]
    return head if head in {"surface", "interference"} else "cost"


def record(hostile: bool = False, missing: dict[str, str] | None = None, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """The first line."""
    missing = MISSING if missing is None else missing
    measures = [{"name": "attacks", "group": "outcome", "title": "Attacks"}]
    measures += [{"name": name, "group": name, "title": name.capitalize()} for name in ("surface", "cost", "interference")]
    measures += [{"name": "functions", "group": "surface", "title": "Kernel functions"}, {"name": "parallel", "group": "cost", "title": "Many at once"}]
    return {
        "kind": "run", "schema": 1, "id": "0a1b2c3d", "started": "2025-11-26T22:10:00+00:00", "mode": "quick", "seed": 7,
        "facts": {
            "cpu": "Imaginary(R) Processor 9000 @ 2.10GHz", "cpus": 2, "memory": 25_000_000_000, "kernel": "6.18.0", "cgroups": "hybrid", "accelerator": "tcg",
            "mitigations": {"spectre_v2": "Mitigation: Enhanced IBRS; IBPB: conditional", "meltdown": "Not affected", "retbleed": None},
            "versions": {"pycontain": "0.1.0", "runc": "1.1.5", "crun": "1.8.1", "runsc": "release-20221122.0", "qemu": "7.2.17"}, **(facts or {}),
        },
        "levels": [{"name": name, "title": title, "about": HOSTILE if hostile else f"What {title} is, in one sentence.", "missing": missing.get(name)} for name, (title, _, _) in LEVELS.items()],
        "measures": measures,
        "quantities": [
            {"name": name, "title": title, "unit": unit, "better": better, "definition": f"{title}, as one sentence says; what it cannot show is here too.", "clock": "CLOCK_MONOTONIC of the host" if unit in {"ms", "us", "ns", "s"} else "", "cache": "page cache warm" if name.startswith("file") else "", "denominator": "one call" if name.startswith("syscall") else ""}
            for name, title, unit, better, _, _ in QUANTITIES
        ],
        "claims": [
            {"name": f"{kind}.{index}", "title": f"{WORDS[index % 7].capitalize()}, way {index}" + (HOSTILE if hostile else ""), "attack": f"It tries to {WORDS[index % 7]}; a success is a byte that was read.", "kind": kind, "row": "CVE-2024-21626" if index == 3 else ""}
            for kind in KINDS for index in range(7)
        ],
    }  # fmt: skip


def records(seed: int = 7, rounds: int = 3, hostile: bool = False, missing: dict[str, str] | None = None, facts: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """All lines of a run, each level of which has its share of everything."""
    chance = random.Random(seed)
    first = record(hostile, missing, facts)
    present = [level["name"] for level in first["levels"] if level["missing"] is None]
    made: list[dict[str, Any]] = [first]
    for level in present:
        _, strength, _ = LEVELS[level]
        for place, claim in enumerate(first["claims"]):
            rank = random.Random(claim["name"]).random()
            verdict = "held" if rank < strength or claim["name"] == "kernel.4" else "noisy" if claim["kind"] == "exhaustion" else "leaked"
            detail = HOSTILE if hostile else {"held": "refused: EPERM", "leaked": "7 bytes of the decoy were read", "noisy": f"the neighbour's p99 grew {1 + 10 * rank:.1f} times"}[verdict]
            if (place, level) != (5, "runsc"):
                made.append({"kind": "outcome", "level": level, "measure": "attacks", "claim": claim["name"], "verdict": verdict, "detail": detail, "times": None, "at": 1.0 + place})
        for place, (name, _, unit, _, size, factor) in enumerate(QUANTITIES):
            if (name, level) in {("start50.first", "vm-tcg"), ("surface.functions", "rootless"), ("work.web", "runsc")}:
                continue
            share = list(LEVELS).index(level) / 10
            typical = size * (1 + (factor - 1) * share**2) if factor >= 1 else size * (1 - (1 - factor) * share)
            count = unit in {"calls", "files", "functions", "capabilities", "devices"}
            for number in range(1, 2 if count else rounds + 1):
                values = [float(round(typical))] if count else [typical * chance.lognormvariate(0, 0.07) * (3 if chance.random() < 0.02 else 1) for _ in range(7)]
                measure = "functions" if name == "surface.functions" else "parallel" if name.startswith("start50") else group(name)
                made.append({"kind": "sample", "level": level, "measure": measure, "quantity": name, "round": number, "values": values, "detail": "ext4" if name.startswith("file") else "", "at": 100.0 + place})
    for claim in first["claims"]:
        made.append({"kind": "outcome", "level": "opened", "measure": "attacks", "claim": claim["name"], "verdict": "held" if claim["name"] == "kernel.4" else "leaked", "detail": "7 bytes of the decoy were read", "times": None, "at": 1.0})
    made.append({"kind": "absent", "level": "rootless", "measure": "functions", "why": HOSTILE if hostile else "an unprivileged user cannot trace the kernel", "at": 3.0})
    made.append({"kind": "failed", "level": "vm-tcg", "measure": "parallel", "why": "50 machines at once: no memory is left", "at": 4.0})
    made.append({"kind": "taken", "level": "process", "measure": "cost", "round": 1, "seconds": 2.5})
    made.append({"kind": "end", "seconds": 812.4, "complete": True})
    return made


def written(path: str | os.PathLike[str], lines: list[dict[str, Any]]) -> results.Results:
    """The lines as a file, and what is loaded of it."""
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return results.load(os.fspath(path))


def changed(lines: list[dict[str, Any]], change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Every line as ``change`` makes it; None leaves it out."""
    return [found for found in (change(json.loads(json.dumps(line))) for line in lines) if found is not None]
