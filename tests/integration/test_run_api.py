"""``import pycontain``: typed calls, the same engine as the command's, and safe beside other threads."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pycontain
from tests.engine_tools import IMAGE, ROOT, Host
from tests.runtime_tools import write_bundle

pytestmark = [pytest.mark.needs("root", "overlayfs", "bridge", "veth", "nft"), pytest.mark.both_executors]


@pytest.fixture
def host(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PYCONTAIN_ROOT", str(host.data))
    monkeypatch.setenv("PYCONTAIN_RUN", str(host.run_directory))
    return host


def test_run_returns_status_and_output(host: Host) -> None:
    result = pycontain.run(
        IMAGE, ["sh", "-c", "echo out; echo err >&2; exit 3"], memory="64m", env={"A": "1"}, **host.isolation
    )
    assert (result.exit_code, result.stdout, result.stderr, result.oom_killed) == (3, b"out\n", b"err\n", False)


def test_input_and_options_as_python_values(host: Host, tmp_path: Path) -> None:
    result = pycontain.run(
        IMAGE,
        ["sh", "-c", "cat; echo $A; pwd; cat /d/f"],
        input=b"in\n",
        env=["A=b"],
        workdir="/tmp",
        volume=[f"{tmp_path}:/d"],
        cpus=0.5,
        pids_limit=50,
        network="none",
        **host.isolation,
    )
    assert (result.exit_code, result.stdout) == (1, b"in\nb\n/tmp\n")


def test_running_out_of_memory_is_told(host: Host) -> None:
    result = pycontain.run(
        IMAGE, ["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"], memory="64m", **host.isolation
    )
    assert (result.exit_code, result.oom_killed) == (137, True)


def test_errors_are_the_classes_of_the_package(host: Host) -> None:
    with pytest.raises(pycontain.PycontainError) as caught:
        pycontain.run(IMAGE, ["nosuch"], **host.isolation)
    assert caught.value.exit_code == 127
    with pytest.raises(pycontain.NotFound):
        pycontain.run("nosuch", pull="never")
    with pytest.raises(pycontain.Unsupported):
        pycontain.run(IMAGE, userns="auto", **host.isolation)
    with pytest.raises(TypeError, match="there is no option 'frob'"):
        pycontain.run(IMAGE, frob=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="env is a list of strings, not one string"):
        pycontain.run(IMAGE, env="A=1")


def test_a_container_object_lives_through_every_verb(host: Host) -> None:
    container = pycontain.create(
        IMAGE, ["sh", "-c", "echo up; trap 'exit 5' TERM; while :; do sleep 0.05; done"], name="api", **host.isolation
    )
    assert (container.name, container.status) == ("api", "created")
    container.start()
    assert container.status == "running"
    assert container.exec(["sh", "-c", "cat; exit 4"], input=b"x").exit_code == 4
    assert pycontain.exec("api", ["id", "-u"], user="7").stdout == b"7\n"
    assert container.inspect()["State"]["Running"] is True
    container.stop()
    assert container.wait() == 5
    assert list(container.logs()) == [("stdout", b"up\n")]
    container.start()
    container.kill(signal.SIGKILL)
    assert container.wait() == 137
    container.remove()
    with pytest.raises(pycontain.NotFound):
        container.inspect()


def test_an_interrupted_run_leaves_nothing(host: Host) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            pycontain.run(IMAGE, ["sleep", "100"], **host.isolation)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_bundle_runs_straight_through_the_runtime(host: Host, tmp_path: Path, rootfs: Path) -> None:
    bundle = write_bundle(tmp_path / "b", rootfs, "sh", "-c", "echo out; echo err >&2; exit 9")
    result = pycontain.run(bundle=bundle)
    assert (result.exit_code, result.stdout, result.stderr) == (9, b"out\n", b"err\n")
    bundle = write_bundle(tmp_path / "c", rootfs, "nosuch")
    with pytest.raises(pycontain.PycontainError) as caught:
        pycontain.run(bundle=bundle)
    assert caught.value.exit_code == 127
    with pytest.raises(TypeError):
        pycontain.run(IMAGE, bundle=bundle)


def test_descriptors_that_a_host_leaks_reach_neither_init_nor_the_container(tmp_path: Path, rootfs: Path) -> None:
    """The plan's own come over the channel, each to a number that must be free then."""
    bundle = write_bundle(tmp_path / "b", rootfs, "sh", "-c", "cd /proc/self/fd; echo *")
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); import pycontain\n"
        "for number in range(3, 40): os.dup2(1, number)\n"
        f"print(pycontain.run(bundle={str(bundle)!r}, run_root={str(tmp_path / 'r')!r}).stdout)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout in ("b'0 1 2\\n'\n", "b'0 1 2 3\\n'\n"), "3 is the shell's, of this directory"


def test_threads_do_not_disturb_each_other(host: Host, tmp_path: Path, rootfs: Path) -> None:
    """Descriptors, the working directory, the umask, signal handlers and other children stay the host's."""
    directory, mask, handler = os.getcwd(), os.umask(0o022), signal.getsignal(signal.SIGINT)
    descriptors = len(os.listdir("/proc/self/fd"))
    other = subprocess.Popen(["sleep", "60"])
    results: list[bytes] = []
    bundle = write_bundle(tmp_path / "b", rootfs, "echo", "x")

    def work(number: int) -> None:
        for _ in range(3):
            results.append(pycontain.run(bundle=bundle).stdout)
            results.append(pycontain.run(IMAGE, ["echo", "x"], network="none", **host.isolation).stdout)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = other.poll()
    other.kill()
    other.wait()
    assert results == [b"x\n"] * 24
    assert ended is None
    assert (os.getcwd(), os.umask(mask), signal.getsignal(signal.SIGINT)) == (directory, 0o022, handler)
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # another test's may have been collected meanwhile


def test_the_import_is_light_and_the_names_are_all_there() -> None:
    code = (
        "import sys, pycontain\n"
        "heavy = {'json', 're', 'typing', 'dataclasses', 'pycontain.api', 'pycontain.engine'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert all(getattr(pycontain, name) is not None for name in pycontain.__all__)\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"], check=True
    )


def test_running_a_bundle_imports_nothing_heavy(tmp_path: Path, rootfs: Path) -> None:
    bundle = write_bundle(tmp_path / "b", rootfs, "true")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"import pycontain; assert pycontain.run(bundle={str(bundle)!r}, run_root={str(tmp_path / 'r')!r}).exit_code == 0\n"
        "heavy = {'json', 're', 'typing', 'dataclasses', 'subprocess', 'ctypes', 'socket', 'pathlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_a_container_that_others_remove_as_it_ends_still_gives_its_status(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycontain.engine import attach

    real = attach.stream

    def and_then_removed(*arguments: object, **options: object) -> object:
        ended = real(*arguments, **options)  # type: ignore[arg-type]
        host("system", "prune", "-f")
        assert host.out("ps", "-aq") == ""
        return ended

    monkeypatch.setattr(attach, "stream", and_then_removed)
    assert pycontain.run(IMAGE, ["sh", "-c", "echo out; exit 3"], network="none", **host.isolation).exit_code == 3


def test_it_may_be_called_where_an_event_loop_runs(host: Host) -> None:
    async def main() -> bytes:
        return pycontain.run(IMAGE, ["echo", "x"], network="none", **host.isolation).stdout

    assert asyncio.run(main()) == b"x\n"
