"""Containers in machines of their own, beside those in namespaces: two clocks, memory, and many at once.

An idle clone is one of a template, alive, whose agent has answered. Its memory is QEMU's Pss: what it has of its own,
and its share of what others map too (QEMU and its libraries, the template's file), so it is given for one alone, and
for one of MANY; and once more for one of MANY with an idle container (``sleep``) in each.

The clocks are those of the user: from before ``pycontain run --rm [--isolation vm] IMAGE sh -c "echo x"`` until the
first byte that the container's process writes, and until the command has ended. Kernels: the distribution's, and the
one that PYCONTAIN_TEST_KERNEL names; acceleration: TCG, and KVM where a guest boots with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.engines import IMAGE, Engine, write_image
from bench.measure import Series, interleave, proportional_kib
from bench.oci import Result, remove_cgroup

MANY = 20


class Contender:
    """A way to run: ``config`` is the operator's file, None for namespaces."""

    def __init__(self, name: str, ours: str, config: str | None) -> None:
        self.name = name
        self.engine = Engine(name, [ours], ("--isolation", "vm") if config else ())
        self.config = config
        self.first: list[float] = []

    def activate(self) -> None:
        if self.config:
            os.environ["PYCONTAIN_VM_CONFIG"] = self.config

    def run(self) -> float:
        """Milliseconds until the end; those until the first byte are appended to ``first``."""
        self.activate()
        words = [*self.engine.command, "run", "--rm", *self.engine.options, IMAGE, "sh", "-c", "echo x"]
        start = time.perf_counter()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout is not None
        byte = os.read(process.stdout.fileno(), 1)
        self.first.append((time.perf_counter() - start) * 1000)
        if process.wait() != 0 or byte != b"x":
            raise RuntimeError(f"{' '.join(words)}: exit status {process.returncode}, first byte {byte!r}")
        spent = (time.perf_counter() - start) * 1000
        process.stdout.close()
        return spent


def configurations(folder: str) -> dict[str, str]:
    """Name → operator's file, of every machine that can be had here."""
    from pycontain.runtime.vm import accel, settings

    kernels = {"the distribution's kernel": ""}
    minimal = os.environ.get("PYCONTAIN_TEST_KERNEL")
    if minimal:
        kernels = {"minimal kernel": f'kernel = "{minimal}"', **kernels}
    found: dict[str, str] = {}
    for kernel, line in kernels.items():
        for how, templates in (("clone", "true"), ("cold", "false")):
            for kind in ("tcg", "kvm"):
                path = f"{folder}/{len(found)}.toml"
                with open(path, "w") as file:
                    print(
                        line,
                        f'cache = "{cache()}"',
                        f'accel = "{kind}"',
                        f"templates = {templates}",
                        sep="\n",
                        file=file,
                    )
                if kind == "kvm":
                    os.environ["PYCONTAIN_VM_CONFIG"] = path
                    asked = settings.load({})
                    asked.accel = "auto"
                    if accel.choose(asked) != "kvm":
                        continue
                found[f"{kind} {how}, {kernel}"] = path
    return found


def cache() -> str:
    return os.environ.get("PYCONTAIN_BENCH_CACHE") or os.path.expanduser("~/.cache/pycontain-bench")


def prepare() -> None:
    """Fetch the distribution's kernel while the package tool's lists are there: the bench's own view hides them."""
    from pycontain.runtime.vm import guest

    guest.distribution(os.path.join(cache(), "kernel"))


@contextmanager
def idle_clone(config: str, folder: str) -> Iterator[tuple[float, int]]:
    """(milliseconds from the start of init to the agent's answer, QEMU's pid) of a clone without a container."""
    from pycontain.runtime import namespaces
    from pycontain.runtime.vm import parts, port, qemu, settings, template
    from pycontain.runtime.vm.qmp import Monitor

    os.environ["PYCONTAIN_VM_CONFIG"] = config
    base = parts.Base(settings.load({}))
    found = template.ensure(base, network=False, disks=[template.IMAGE])
    state = tempfile.mkdtemp(dir=folder)
    image = f"{state}/image"
    with open(image, "wb") as file:
        file.truncate(1 << 20)
        os.fchmod(file.fileno(), 0o444)
    made = parts.Parts(base, state, [(image, False)], template=found)
    plan = made.plan(into=False, joins=0, device_program=None, terminal=None, listener=None)
    null = os.open("/dev/null", os.O_RDWR)
    start = time.perf_counter()
    process = namespaces.launch(plan, stdio=(null, null, null))
    try:
        process.unshared()
        process.go(b"")
        made.handed_over()
        with Monitor(state) as monitor:
            monitor.migrate_from(qemu.incoming(made.machine))
        with port.Caller(state) as caller:
            caller.call([("enter_root",)])
            spent = (time.perf_counter() - start) * 1000
        yield spent, child_of(process.pid)
    finally:
        os.kill(process.pid, 9)
        os.waitpid(process.pid, 0)
        process.close()
        made.close()
        os.close(null)


def child_of(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return int(file.read().split()[0])


def many(contender: Contender) -> tuple[float, list[int]]:
    """(milliseconds until MANY detached containers run, started at once; Pss of each QEMU in KiB 2 s later)."""
    contender.activate()
    names = [f"many{i}" for i in range(MANY)]
    engine = contender.engine
    start = time.perf_counter()
    words = [*engine.command, "run", "-d", *engine.options]
    started = [
        subprocess.Popen([*words, "--name", name, IMAGE, "sleep", "1000"], stdout=subprocess.DEVNULL) for name in names
    ]
    try:
        failed = [process.wait() for process in started]
        if any(failed):
            raise RuntimeError("not all of them started")
        spent = (time.perf_counter() - start) * 1000
        time.sleep(2)
        pids = [int(json.loads(engine.call("inspect", name))[0]["State"]["Pid"]) for name in names]
        return spent, sorted(proportional_kib(child_of(pid)) for pid in pids)
    finally:
        engine.call("rm", "-f", *names)


def suite(ours: str, rounds: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="pycontain-bench.", ignore_cleanup_errors=True) as folder:
        os.environ["PYCONTAIN_ROOT"] = f"{folder}/data"
        os.environ["PYCONTAIN_RUN"] = f"{folder}/run"
        os.makedirs(cache(), exist_ok=True)
        contenders = [Contender("namespaces", ours, None)]
        contenders += [Contender(name, ours, path) for name, path in configurations(folder).items()]
        contenders[0].engine.call("import", write_image(folder), IMAGE)
        timings: list[Result] = []
        memory: dict[str, int] = {}
        try:
            for series in interleave({one.name: one.run for one in contenders}, rounds, idle=False):
                timings.append({"discipline": "run --rm, to the end", "idle": False, **series.to_json()})
            for one in contenders:
                first = Series(one.name, one.first[1:])
                timings.append({"discipline": "run --rm, to the first byte", "idle": False, **first.to_json()})
            for one in contenders:
                if one.config is None or "clone" not in one.name:
                    continue
                answers = []
                for _ in range(min(rounds, 11)):
                    with idle_clone(one.config, folder) as (spent, pid):
                        answers.append(spent)
                        time.sleep(0.2)
                        memory[f"{one.name}, idle, alone"] = proportional_kib(pid)
                with ExitStack() as alive:
                    pids = [alive.enter_context(idle_clone(one.config, folder))[1] for _ in range(MANY)]
                    time.sleep(2)
                    memory[f"{one.name}, idle, one of {MANY}"] = sorted(map(proportional_kib, pids))[MANY // 2]
                series = Series(one.name, answers)
                timings.append({"discipline": "clone, to the agent's answer", "idle": False, **series.to_json()})
                spent, pss = many(one)
                series = Series(one.name, [spent])
                timings.append({"discipline": f"{MANY} at once, all running", "idle": False, **series.to_json()})
                memory[f"{one.name}, with a container, one of {MANY}"] = pss[MANY // 2]
        finally:
            subprocess.run([ours, "system", "prune", "--force"], check=False, capture_output=True)
            remove_cgroup("pycontain")
            shutil.rmtree(f"{folder}/data", ignore_errors=True)
    return {"timings": timings, "companion_pss_kib": memory, "absent": {}}
