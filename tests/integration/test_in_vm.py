"""The limits on a real cgroup v2 kernel: runs the tests that need one in the machine of tests/vm."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import COMMAND, make_rootfs, write_bundle
from tests.vm import kernel, machine

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.needs("root", "qemu", "vm"), pytest.mark.timeout(600)]


def in_machine(*command: str, timeout: float = 500.0, systemd: bool = False, parameters: str = "") -> tuple[int, str]:
    output = io.BytesIO()
    # What the machine compiles is gone with it, and costs it time.
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    try:
        status = machine.run(
            command,
            output=output,
            cwd=str(ROOT),
            environment=environment,
            timeout=timeout,
            systemd=systemd,
            parameters=parameters,
        )
    except (TimeoutError, machine.MachineError) as error:
        pytest.fail(f"{error}\n{output.getvalue().decode(errors='replace')}")
    return status, output.getvalue().decode(errors="replace")


def compile_here() -> None:
    """An emulated processor takes half a minute to compile what the tests import, and to rewrite their assertions."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    folders = ("pycontain", "runtime", "images", "network", "tests")
    collect = ("pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *(file.partition("::")[0] for file in FILES))
    for words in (("compileall", "-q", *folders), collect):
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def pytest_in_machine(*arguments: str, systemd: bool = False) -> None:
    # Importing hypothesis takes an emulated processor seconds, and no test that runs there has a use for it.
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--timeout", "60"]
    must_have = "root,cgroup2,systemd" if systemd else "root,cgroup2"
    status, output = in_machine(*pytest_, "--must-have", must_have, *arguments, systemd=systemd)
    assert status == 0, output
    assert " passed" in output
    assert "skipped" not in output


# And limits above the caller's, which root may raise there, whatever this host's root may; and AppArmor is on there.
CGROUPS = [f"tests/integration/test_{name}.py" for name in ("cgroup_v2", "cgroup_any", "rlimits", "apparmor")]
CGROUPS += ["tests/unit/test_host.py"]
# One by one: the others of these files say nothing about the hierarchy.
CONTAINERS = [
    "tests/integration/test_cgroup_runtime.py::test_limits_read_back",
    "tests/integration/test_cgroup_runtime.py::test_the_container_and_what_is_executed_in_it_are_in_every_hierarchy",
    "tests/integration/test_cgroup_runtime.py::test_100_megabytes_do_not_fit_into_64",
    "tests/integration/test_cgroup_runtime.py::test_the_21st_process_cannot_start",
    "tests/integration/test_cgroup_runtime.py::test_a_paused_container_can_be_deleted",
    "tests/integration/test_cgroup_runtime.py::test_devices_are_denied_unless_allowed",
    "tests/integration/test_cgroup_update.py::test_every_common_limit[paused]",
    "tests/integration/test_cgroup_update.py::test_a_new_limit_is_enforced",
    "tests/integration/test_cgroup_events.py::test_statistics_say_what_the_kernel_says",
    "tests/integration/test_cgroup_events.py::test_the_lack_of_memory_is_told_while_it_happens",
    "tests/integration/test_cgroup_delegation.py::test_a_container_shares_out_what_is_its_own",
    "tests/integration/test_cgroup_delegation.py::test_a_cgroup_below_the_callers_own",
    "tests/integration/test_rootless.py::test_limits_in_a_given_cgroup",
    "tests/integration/test_rootless.py::test_a_clock_of_its_own",
    # Here without its weakened twin, which is shown to work where cgroup2 is all that a host has mounted.
    "tests/security/test_runtime_rights.py::test_a_device_that_no_rule_names[GHSA-g54h-m393-cpwq-held]",
]
SYSTEMD = ["tests/integration/test_systemd.py", "tests/integration/test_checkpoint.py"]
FILES = [*CGROUPS, *CONTAINERS, *SYSTEMD]


def cgroups_and_containers_on_v2() -> None:
    """In one boot, and one start of pytest: the two take an emulated processor 12 seconds."""
    pytest_in_machine(*CGROUPS, *CONTAINERS)


def systemd_and_checkpoints() -> None:
    """criu does not know every kernel; it knows that one. In one boot with the tests below systemd."""
    pytest_in_machine(*SYSTEMD, "-k", "test_systemd or goes_on or left_running or fails_says", systemd=True)


# What runs in a machine, by the name of the test that looks at what became of it; the longest first.
SCRIPT = "make run && echo out; echo err >&2; grep -c cgroup2 /proc/mounts; touch /made; kill -TERM $$"
RUNS: dict[str, Callable[[], Any]] = {
    "test_containers_of_systemd_and_checkpoints": systemd_and_checkpoints,
    "test_cgroups_and_containers_on_v2": cgroups_and_containers_on_v2,
    "test_the_main_job_output_status_and_signals": partial(in_machine, "sh", "-c", SCRIPT),
    "test_a_command_that_is_not_there": partial(in_machine, "no-such-command"),
}


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Any]]]:
    """The chosen ones of RUNS, at once: each keeps a processor busy, but for when it waits."""
    chosen = {item.name for item in request.session.items}
    kernel.base_initramfs(kernel.kernel())
    compile_here()
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        started = {name: pool.submit(run) for name, run in RUNS.items() if name in chosen}
        try:
            yield started
        finally:
            for future in started.values():
                future.cancel()


def test_cgroups_and_containers_on_v2(runs: dict[str, Future[Any]]) -> None:
    runs["test_cgroups_and_containers_on_v2"].result()


def test_containers_of_systemd_and_checkpoints(runs: dict[str, Future[Any]]) -> None:
    runs["test_containers_of_systemd_and_checkpoints"].result()


def test_selinux(tmp_path: Path) -> None:
    """A kernel that has it beside AppArmor has one of them on: the first of its list.

    Without a policy it knows its initial contexts only, "unlabeled" among them, gives "kernel" to all, and takes no
    label for a mount.
    """
    rootfs = make_rootfs(tmp_path / "rootfs")
    read = ("cat", "/proc/self/attr/current")
    user = {"uid": 1000, "gid": 1000}
    for name, process, linux in (
        ("label", {"selinuxLabel": "unlabeled", "user": user}, {}),
        ("none", {}, {}),
        ("mount", {}, {"mountLabel": "unlabeled"}),
    ):

        def change(config: dict[str, Any], process: Any = process, linux: Any = linux) -> None:
            config["process"].update(process)
            config["linux"].update(linux)

        write_bundle(tmp_path / name, rootfs, *read, change=change)
    run = " ".join(COMMAND) + f" --root /run/selinux run -b {tmp_path}/"
    script = (
        "mount -t selinuxfs selinuxfs /sys/fs/selinux; for name in label none mount; do " + run + "$name se; echo; done"
    )
    status, output = in_machine("sh", "-c", script, parameters="lsm=landlock,lockdown,yama,integrity,selinux,bpf")
    assert (status, output.replace("\0", "").split("\n")) == (
        0,
        [
            "unlabeled",
            "kernel",
            "pycontain-runtime: cannot mount tmpfs (tmpfs) on /dev: nosuid,strictatime,mode=755,size=65536k,"
            'context="unlabeled": mount: EINVAL (invalid argument)',
            "",
            "",
        ],
    )


def test_the_main_job_output_status_and_signals(runs: dict[str, Future[Any]]) -> None:
    """``make run`` on a kernel with nothing but cgroup2: a container with an address and a memory limit. And what the
    machine passes on."""
    status, output = runs["test_the_main_job_output_status_and_signals"].result()
    assert (status, output[-10:]) == (128 + 15, "out\nerr\n1\n"), output
    assert "memory limit: 67108864 bytes" in output
    assert "address:" in output
    assert not Path("/made").exists()


def test_a_command_that_is_not_there(runs: dict[str, Future[Any]]) -> None:
    expected = "test machine: run no-such-command: No such file or directory\n"
    assert runs["test_a_command_that_is_not_there"].result() == (127, expected)
