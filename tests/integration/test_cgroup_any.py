"""One body of tests for every backend: it proves v1 on a hybrid host, and v2 in the VM (test_in_vm.py).

``TestStructure`` needs no controller at all; test_cgroup_v2.py runs it with nothing but cgroup2 mounted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pycontain.runtime.errors import Conflict, KernelError
from pycontain.runtime.kernel import cgroup as kernel
from pycontain.runtime.kernel import hierarchies as mounted
from pycontain.runtime.kernel.cgroup import Cgroup
from tests.integration.cgroup_tools import cat, child, end, joining, of_process, run, scratch, sleeper, until

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def opened() -> Iterator[Cgroup]:
    with scratch("box") as group:
        yield group


@pytest.fixture
def group(opened: Cgroup) -> Cgroup:
    opened.create()
    return opened


class TestStructure:
    def test_create_and_remove(self, opened: Cgroup) -> None:
        assert not opened.exists()
        opened.create()
        assert opened.exists()
        assert all(os.path.isdir(directory) for directory in opened.directories)
        assert len(opened.directories) == len(mounted.hierarchies())
        opened.remove()
        assert not any(os.path.exists(directory) for directory in opened.directories)

    def test_remove_of_nothing_is_no_error(self, opened: Cgroup) -> None:
        opened.remove()
        assert opened.pids() == []

    def test_a_child_joins_every_hierarchy(self, group: Cgroup) -> None:
        process = sleeper(group)
        try:
            places = of_process(process.pid)
            expected = {",".join(h.controllers) or (f"name={h.name}" if h.name else "") for h in mounted.hierarchies()}
            assert {name for name, path in places.items() if path == group.path} == expected
            assert group.pids() == [process.pid]
        finally:
            end(process)

    def test_clone_fd_is_the_cgroup2_directory(self, group: Cgroup) -> None:
        fd = group.clone_fd()
        if group.unified is None:
            assert fd is None
            return
        assert fd is not None
        assert os.path.samestat(os.fstat(fd), os.stat(group.unified))
        assert not os.get_inheritable(fd)
        os.close(fd)

    def test_the_fds_are_closed_on_exec(self, group: Cgroup) -> None:
        kind, value = group.join_fds()
        fds = value if kind == "v1" else [value]
        assert fds
        assert not any(os.get_inheritable(fd) for fd in fds)
        for fd in fds:
            os.close(fd)

    def test_join_of_a_cgroup_that_is_gone(self, opened: Cgroup) -> None:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(KernelError, match=r"^open /.* of cgroup /.*/box: ENOENT \(no such file or directory\)$"):
            opened.join_fds()
        assert os.listdir("/proc/self/fd") == before

    def test_an_empty_leftover_is_made_anew(self, group: Cgroup) -> None:
        inner = [f"{directory}/inner" for directory in group.directories]
        for directory in inner:
            os.mkdir(directory)
        group.create()
        assert group.exists()
        assert not any(os.path.exists(directory) for directory in inner)

    def test_a_cgroup_with_processes_is_a_conflict_and_keeps_them(self, group: Cgroup) -> None:
        process = sleeper(group)
        try:
            with pytest.raises(Conflict) as caught:
                kernel.open_cgroup(group.path).create()
            assert caught.value.message == (
                f"create cgroup {group.directories[0]}: it is there already and holds processes ({process.pid})"
            )
            assert caught.value.hint == "choose another $.linux.cgroupsPath, or end these processes"
            assert group.pids() == [process.pid]
            assert all(os.path.isdir(directory) for directory in group.directories)
        finally:
            end(process)

    def test_a_failure_on_the_way_leaves_nothing(self, opened: Cgroup) -> None:
        for directory in opened.directories:
            os.makedirs(os.path.dirname(directory), exist_ok=True)
        # One hierarchy refuses (it is busy), after others were made already.
        os.mkdir(opened.directories[-1])
        with open(f"{opened.directories[-1]}/cgroup.procs", "w") as procs:
            process = subprocess.Popen(["sleep", "600"])
            procs.write(str(process.pid))
        try:
            with pytest.raises(Conflict):
                opened.create()
            assert [os.path.exists(directory) for directory in opened.directories[:-1]] == [False] * (
                len(opened.directories) - 1
            )
        finally:
            process.kill()
            process.wait()

    def test_what_the_kernel_refuses_leaves_nothing(self, opened: Cgroup) -> None:
        assert opened.unified is not None
        parent = os.path.dirname(opened.unified)
        os.mkdir(parent)
        with open(f"{parent}/cgroup.max.descendants", "w") as file:
            file.write("0")
        with pytest.raises(KernelError) as caught:
            opened.create()
        assert caught.value.message == (f"create cgroup {opened.unified}: EAGAIN (resource temporarily unavailable)")
        assert not opened.exists()

    def test_parallel_creation_below_one_new_parent(self, opened: Cgroup) -> None:
        errors: list[BaseException] = []

        def make(index: int) -> None:
            try:
                one = kernel.open_cgroup(f"{opened.path}-{index}")
                one.create()
                with joining(one):
                    pass
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=make, args=(index,)) for index in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        code, output = run(kernel.open_cgroup(f"{opened.path}-7"), "print('joined')")
        assert (code, output) == (0, "joined\n")

    def test_pids_and_remove_reach_what_the_container_made_below(self, group: Cgroup) -> None:
        inner = kernel.open_cgroup(group.path + "/a/b")
        inner.create()
        process = sleeper(inner)
        assert group.pids() == [process.pid]
        end(process)
        group.remove()
        assert not group.exists()

    def test_remove_waits_for_a_process_that_is_just_ending(self, group: Cgroup) -> None:
        process = sleeper(group)
        timer = threading.Timer(0.3, process.kill)
        timer.start()
        started = time.monotonic()
        group.remove()
        assert time.monotonic() - started > 0.2
        assert not group.exists()
        end(process)

    def test_remove_names_the_processes_that_are_left(self, group: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mounted, "_REMOVE_SECONDS", 0.1)
        process = sleeper(group)
        try:
            with pytest.raises(KernelError) as caught:
                group.remove()
            assert caught.value.message == f"remove cgroup {group.directories[0]}: EBUSY (device or resource busy)"
            assert caught.value.hint == f"end the processes that are left in it: {process.pid}"
        finally:
            end(process)

    def test_kill_all_ends_a_tree_of_processes(self, group: Cgroup) -> None:
        process = child(
            group,
            "import time\nfor _ in range(3): os.fork()\nos.setsid()\ntime.sleep(600)\n",
        )
        assert until(lambda: len(group.pids()) == 8)
        group.kill_all()
        assert group.pids() == []
        process.communicate(timeout=10)
        assert process.returncode == -signal.SIGKILL

    def test_kill_all_outruns_a_fork_bomb(self, group: Cgroup) -> None:
        process = child(group, "while True:\n    if os.fork(): os._exit(0)\n")
        assert until(lambda: bool(group.pids()))
        group.kill_all()
        assert group.pids() == []
        end(process)

    def test_kill_all_of_a_paused_cgroup(self, group: Cgroup) -> None:
        process = sleeper(group)
        group.freeze(True)
        group.kill_all()
        process.communicate(timeout=10)
        assert process.returncode == -signal.SIGKILL

    def test_kill_all_without_cgroup_kill(self, group: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
        """Linux before 5.14, and processes of a hybrid host that never joined cgroup2."""
        monkeypatch.setattr(Cgroup, "_kill_by_file", lambda self: False)
        process = child(group, "while True:\n    if os.fork(): os._exit(0)\n", unified=False)
        assert until(lambda: bool(group.pids()))
        group.kill_all()
        assert group.pids() == []
        end(process)

    def test_kill_all_is_bounded(self, group: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
        process = sleeper(group)
        monkeypatch.setattr(Cgroup, "_kill_by_file", lambda self: False)
        with monkeypatch.context() as deaf:
            deaf.setattr("posix.kill", lambda pid, number: None)
            with pytest.raises(KernelError) as caught:
                group.kill_all(timeout=0.1)
        assert caught.value.message == (
            f"kill the processes of cgroup {group.path}: {process.pid} still there: EBUSY (device or resource busy)"
        )
        end(process)

    def test_freeze_and_thaw(self, group: Cgroup) -> None:
        process = child(group, "import time\nwhile True:\n    print('x', flush=True)\n    time.sleep(0.01)\n")
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)

        def output() -> bytes:
            try:
                return os.read(process.stdout.fileno(), 65536)  # type: ignore[union-attr]
            except BlockingIOError:
                return b""

        assert until(lambda: bool(output()))
        group.freeze(True)
        output()
        time.sleep(0.2)
        assert output() == b""
        group.freeze(False)
        assert until(lambda: bool(output()))
        end(process)

    def test_freeze_of_a_cgroup_that_is_gone(self, opened: Cgroup) -> None:
        with pytest.raises(KernelError, match=r"^write .* to /.*: ENOENT \(no such file or directory\)$"):
            opened.freeze(True)

    def test_the_callers_own_cgroup_is_not_in_the_path(self, group: Cgroup) -> None:
        """Also from inside a nested cgroup the same name is the same cgroup."""
        code = (
            f"import site\nsys.path[:0] = {[path for path in sys.path if path]!r}\n"
            "from pycontain.runtime.kernel.cgroup import open_cgroup\n"
            f"print(*open_cgroup({group.path!r}).directories)"
        )
        assert run(group, code) == (0, " ".join(group.directories) + "\n")


class TestLimits:
    def test_memory_over_the_limit_is_killed_and_counted(self, group: Cgroup) -> None:
        limit = 64 << 20
        group.apply({"memory": {"limit": limit, "swap": limit}, "pids": {"limit": 20}})
        assert group.oom_kills() == 0
        code, output = run(group, "b = bytearray(32 << 20); print(len(b))")
        assert (code, output) == (0, f"{32 << 20}\n")
        code, output = run(group, "b = bytearray(100 << 20); print(len(b))")
        assert (code, output) == (-signal.SIGKILL, "")
        assert group.oom_kills() == 1

    def test_oom_kills_of_a_cgroup_below_count_too(self, group: Cgroup) -> None:
        group.apply({"memory": {"limit": 64 << 20, "swap": 64 << 20}})
        inner = kernel.open_cgroup(group.path + "/inner")
        inner.create()
        inner.apply({"memory": {"limit": 32 << 20, "swap": 32 << 20}})
        assert run(inner, "bytearray(50 << 20)")[0] == -signal.SIGKILL
        assert group.oom_kills() == 1

    def test_the_process_over_the_limit_cannot_start(self, group: Cgroup) -> None:
        group.apply({"pids": {"limit": 20}})
        code, output = run(
            group,
            "import signal\nchildren = []\n"
            "try:\n"
            "    while True:\n"
            "        pid = os.fork()\n"
            "        if pid == 0: signal.pause()\n"
            "        children.append(pid)\n"
            "except OSError as error:\n"
            "    print(1 + len(children), error.strerror)\n"
            "for pid in children: os.kill(pid, 9)\n",
        )
        assert (code, output) == (0, "20 Resource temporarily unavailable\n")

    def test_cpu_quota_throttles(self, group: Cgroup) -> None:
        group.apply({"cpu": {"quota": 10000, "period": 100000}})
        code, output = run(
            group,
            "import time\nend, before = time.monotonic() + 1, time.process_time()\n"
            "while time.monotonic() < end: pass\n"
            "print(time.process_time() - before)\n",
        )
        assert code == 0
        assert float(output) < 0.4
        cpu = group.stats()["cpu"]
        assert cpu["throttled_periods"] >= 5
        assert cpu["throttled"] > 300_000_000

    def test_stats(self, group: Cgroup) -> None:
        group.apply({"memory": {"limit": 256 << 20}, "pids": {"limit": 9}})
        process = child(
            group,
            "b = bytearray(b'x' * (40 << 20))\nimport time\n"
            "end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
            "print('in', flush=True)\ntime.sleep(60)\n",
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            stats = group.stats()
            assert stats["memory"]["limit"] == 256 << 20
            assert 40 << 20 <= stats["memory"]["usage"] < 256 << 20
            assert 40 << 20 <= stats["memory"]["anon"] < 256 << 20
            assert stats["memory"]["file"] >= stats["memory"]["inactive_file"] >= 0
            assert stats["pids"] == {"current": 1, "limit": 9}
            assert 200_000_000 <= stats["cpu"]["usage"] < 60_000_000_000
            assert stats["cpu"]["user"] + stats["cpu"]["system"] <= stats["cpu"]["usage"] * 1.2
            assert stats["oom_kills"] == 0
        finally:
            end(process)

    def test_no_limit_reads_as_none(self, group: Cgroup) -> None:
        stats = group.stats()
        assert stats["memory"]["limit"] is None
        assert stats["pids"]["limit"] is None

    def test_limits_can_be_raised_lowered_and_lifted(self, group: Cgroup) -> None:
        for limit in (64 << 20, 256 << 20, 32 << 20):
            group.apply({"memory": {"limit": limit, "swap": limit * 2}})
            assert group.stats()["memory"]["limit"] == limit
        group.apply({"memory": {"limit": -1}})
        assert group.stats()["memory"]["limit"] is None
        for quota, period in ((50000, 100000), (400000, 400000), (5000, 10000)):
            group.apply({"cpu": {"quota": quota, "period": period}})
        group.apply({"cpu": {"quota": -1}})

    def test_a_leftovers_limits_are_gone(self, group: Cgroup) -> None:
        group.apply({"memory": {"limit": 64 << 20}, "pids": {"limit": 3}})
        group.create()
        stats = group.stats()
        assert (stats["memory"]["limit"], stats["pids"]["limit"]) == (None, None)

    @pytest.mark.parametrize(
        ("resources", "where", "value"),
        [
            ({"cpu": {"quota": 100}}, "cpu.quota", "100"),
            ({"cpu": {"cpus": "4096"}}, "cpu.cpus", "4096"),
            ({"cpu": {"cpus": "zero"}}, "cpu.cpus", "zero"),
            ({"cpu": {"mems": "900"}}, "cpu.mems", "900"),
            ({"cpu": {"mems": "\ud800"}}, "cpu.mems", "\\ud800"),
            ({"cpu": {"idle": 7}}, "cpu.idle", "7"),
            ({"pids": {"limit": -7}}, "pids.limit", "-7"),
            ({"pids": {"limit": 1 << 40}}, "pids.limit", str(1 << 40)),
        ],
    )
    def test_what_the_kernel_refuses(
        self, group: Cgroup, resources: dict[str, dict[str, object]], where: str, value: str
    ) -> None:
        with pytest.raises(KernelError) as caught:
            group.apply(resources)
        start = f"$.linux.resources.{where}: write '{value}' to "
        assert caught.value.message.startswith(start)
        file, _, said = caught.value.message.removeprefix(start).partition(": ")
        assert os.path.dirname(file) in group.directories
        assert said in ("EINVAL (invalid argument)", "ERANGE (numerical result out of range)")

    def test_cpuset_moves_the_processes(self, group: Cgroup) -> None:
        group.apply({"cpu": {"cpus": "0", "mems": "0"}})
        assert run(group, "print(sorted(os.sched_getaffinity(0)))") == (0, "[0]\n")

    def test_the_independent_reading(self, group: Cgroup) -> None:
        group.apply({"pids": {"limit": 11}})
        directory = next(d for d in group.directories if os.path.exists(f"{d}/pids.max"))
        assert cat(f"{directory}/pids.max") == "11"
