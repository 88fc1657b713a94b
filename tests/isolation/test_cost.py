"""What figures of costs promise: those that are declared, of the right kind, and what they say of their state is true."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from pycontain.isolation import cost_files, workloads
from pycontain.isolation.cost import MEASURES
from pycontain.isolation.cost_files import cached, evict
from pycontain.isolation.cost_memory import idle, kernel_memory, pss
from pycontain.isolation.cost_network import PORT
from pycontain.isolation.cost_probe import answer, ask, writable
from pycontain.isolation.cost_start import at_once
from pycontain.isolation.levels import level
from pycontain.isolation.model import Bind, Ended, Measure, Sample
from pycontain.isolation.world import World
from pycontain.network.netlink import Netlink
from pycontain.runtime.errors import PycontainError, Unsupported
from tests import machine_tools

pytestmark = pytest.mark.needs("root")
QUICK = [measure for measure in MEASURES if measure.quick]
# The most and the least that any machine of the next years gives, emulation included.
SANE = {
    "ns": (0.1, 1e9), "µs": (1, 1e7), "ms": (0.01, 60_000), "MiB/s": (1, 1e6), "KiB": (4, 4 << 20), "Msteps/s": (0.1, 1e5),
    "sorts/s": (1, 1e6), "starts/s": (0.01, 1e5), "requests/s": (1, 1e6), "transactions/s": (0.1, 1e5), "instances": (1, 1e6),
}  # fmt: skip


def taken(measure: Measure, world: World, name: str) -> list[Sample]:
    return [item for item in measure.take(world, level(name)) if isinstance(item, Sample)]


def named(name: str) -> Measure:
    return next(measure for measure in MEASURES if measure.name == name)


def test_every_quantity_says_what_it_is() -> None:
    found = [quantity for measure in MEASURES for quantity in measure.quantities]
    assert len({quantity.name for quantity in found}) == len({quantity.title for quantity in found}) == len(found)
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    for quantity in found:
        assert quantity.clock and quantity.denominator and quantity.definition.endswith("."), quantity
        assert quantity.unit in SANE, quantity


@pytest.mark.parametrize("measure", QUICK, ids=lambda measure: measure.name)
def test_a_measure_yields_what_it_declares(world: World, measure: Measure) -> None:
    found = {sample.quantity: sample.values for sample in taken(measure, world, "container")}
    assert sorted(found) == sorted(quantity.name for quantity in measure.quantities)
    for quantity in measure.quantities:
        least, most = SANE[quantity.unit]
        assert found[quantity.name], quantity.name
        assert all(math.isfinite(value) and least < value < most for value in found[quantity.name]), found
    with Netlink() as kernel:
        assert [link.name for link in kernel.links()] == ["lo"]
    assert [path for path in Path(world.scratch("test")).parent.iterdir() if not path.name.startswith("test")] == []


def test_a_call_costs_what_another_program_sees_too(world: World) -> None:
    found = {sample.quantity: sample.values for sample in taken(named("syscalls"), world, "process")}
    start = time.perf_counter_ns()
    for _ in range(20_000):
        os.getppid()
    ours = (time.perf_counter_ns() - start) / 20_000
    assert ours / 100 < min(found["syscall.getpid"]) < ours * 100
    # A fork is a thousand times a system call, and one with an exec is no less: units are not mixed up.
    assert min(found["syscall.getpid"]) * 10 < min(found["syscall.fork"])
    assert all(len(values) == 15 for values in found.values())


def test_a_file_is_written_to_its_last_byte_and_removed(world: World) -> None:
    words = ("cost_file", "dir={data}", "mib=2", "ms=1", "batches=2")
    with writable(world, "test") as directory:
        binds = (Bind(directory, "/data", writable=True),)
        found = ask(world, level("container"), *words, "keep=1", binds=binds)
        (kept,) = Path(directory).iterdir()
        assert kept.stat().st_size == found["bytes"] == 2 << 20
        assert kept.stat().st_blocks * 512 >= 2 << 20  # nothing of it is a hole
        assert len(set(kept.read_bytes()[: 1 << 16])) == 256
        kept.unlink()
        ask(world, level("process"), *words, binds=binds)
        assert list(Path(directory).iterdir()) == []


def in_page_cache(path: str) -> int:
    """Pages of a file, by another program."""
    if shutil.which("fincore") is None:
        pytest.skip("needs fincore: not installed")
    done = subprocess.run(["fincore", "--noheadings", "--output", "PAGES", path], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_cold_is_cold_and_warm_is_warm(world: World) -> None:
    with writable(world, "test") as directory, open(f"{directory}/file", "w+b", buffering=0) as file:
        path = file.name
        file.write(os.urandom(1 << 20))
        assert cached(file.fileno()) == in_page_cache(path) == 256
        assert evict(file.fileno())
        assert in_page_cache(path) == 0
        found = ask(world, level("process"), "cost_cold", f"file={path}", "count=16", "batches=3")
        assert len(found["cold"]) == 3
        # Each block once, none beside it: 48 reads brought in 48 pages.
        assert cached(file.fileno()) == in_page_cache(path) == 48
        with pytest.raises(PycontainError, match="Invalid argument"):  # there are not so many blocks
            ask(world, level("process"), "cost_cold", f"file={path}", "count=128", "batches=3")


def test_a_file_that_stays_in_memory_is_never_called_cold(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_files, "writable", lambda world, name: nullcontext(world.directory))
    with pytest.raises(Unsupported, match="stays in the page cache"):
        taken(named("files-cold"), world, "process")


def mappings(pids: list[int]) -> bytes:
    return b"".join(Path(f"/proc/{pid}/smaps").read_bytes() for pid in pids)


def at_rest(pids: list[int]) -> tuple[bytes, int]:
    """The mappings and what `pss` says, of one moment: any process that comes or goes changes the share of others."""
    for _ in range(100):
        before, ours, after = mappings(pids), pss(pids), mappings(pids)
        if before == after:
            return before, ours
        time.sleep(0.01)
    pytest.fail(f"the mappings of {pids} have changed beneath each of 100 readings")


def test_memory_is_what_another_program_adds_up(world: World) -> None:
    with world.cgroup("test") as inside, idle(inside, level("container"), 2) as tenants:
        time.sleep(0.2)
        for tenant in tenants:
            pids = tenant.pids()
            assert len(pids) >= 2  # the program, and the runtime that waits for it
            smaps, ours = at_rest(pids)
            sums = "/^Pss:/ { kib += $2 } /^VmFlags:/ { maps++ } END { print kib, maps }"
            done = subprocess.run(["awk", sums], input=smaps, capture_output=True, check=True)
            kib, maps = map(int, done.stdout.split())
            # smaps cuts off the fraction of a KiB of each mapping, smaps_rollup that of the sum only.
            assert kib <= ours >> 10 <= kib + maps
        used = kernel_memory(inside.cap)
    assert used is None or 2 * 16384 < used < 64 << 20  # a kernel stack at least for each
    assert pss([2**22]) == 0


def test_many_are_let_go_at_one_moment(world: World) -> None:
    ended, seconds = at_once(world, level("process"), 5)
    assert [one.status for one in ended] == [0] * 5
    assert max(one.total for one in ended) / 1000 <= seconds <= sum(one.total for one in ended) / 1000 + 1


def test_a_program_that_is_not_there_is_named(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "_DIRECTORIES", (str(tmp_path),))
    for name, program in (("compiler", "cc"), ("database", "python3"), ("web", "python3")):
        with pytest.raises(Unsupported, match=f"{program} is not installed in {tmp_path}"):
            taken(named(name), world, "process")
    with pytest.raises(Unsupported, match="no root file system of its own"):
        taken(named("files-root"), world, "process")
    with pytest.raises(Unsupported, match="a loopback and nothing else"):
        taken(named("link"), world, "runsc")


def test_a_web_server_that_answers_wrongly_gives_no_figure(world: World) -> None:
    process = level("process")
    with pytest.raises(PycontainError, match="No child process"):
        ask(world, process, "cost_web", "--", "/bin/false")
    lost = "import http.server as h; h.ThreadingHTTPServer(('127.0.0.1', 8080), h.SimpleHTTPRequestHandler).serve_forever()"
    with pytest.raises(PycontainError, match="Protocol error"):  # 404 is an answer, but not the page
        ask(world, process, "cost_web", "ms=50", "--", "/usr/bin/python3", "-I", "-S", "-c", lost)


def test_what_a_probe_could_not_do_is_told(world: World) -> None:
    process = level("process")
    with pytest.raises(PycontainError, match="cost_cold at process failed: No such file or directory"):
        ask(world, process, "cost_cold", "file=/no/such/file")
    with pytest.raises(PycontainError, match="cost_run at process failed: Operation canceled"):
        ask(world, process, "cost_run", "--", "/bin/false")
    with pytest.raises(PycontainError, match="cost_client at process failed: tcp: Connection refused; stream: .*; udp: "):
        ask(world, process, "cost_client", f"port={PORT}", "ms=1")
    with pytest.raises(PycontainError, match="ended with 2 and without an answer: no probe has the name cost_none"):
        ask(world, process, "cost_none")
    part = json.dumps({"probe": "cost_syscalls", "getpid": [1.0], "failed.futex": "Function not implemented"}).encode()
    with pytest.raises(PycontainError, match="cost_syscalls at process failed: futex: Function not implemented"):
        answer(Ended(0, part, b"", None, 1.0), process, "cost_syscalls")


@pytest.mark.needs(*machine_tools.NEEDS)
def test_a_machine_is_reached_by_its_tap(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(machine_tools.settings(tmp_path)))
    found = {sample.quantity: sample.values for sample in taken(named("link"), world, "vm-tcg")}
    assert sorted(found) == ["link.stream", "link.tcp", "link.udp"] and all(min(values) > 0 for values in found.values())
    with Netlink() as kernel:
        assert [link.name for link in kernel.links()] == ["lo"]  # neither a tap nor the engine's bridge
