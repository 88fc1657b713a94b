"""AppArmor profiles, on a kernel that has it: the machine of tests/vm does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import Runtime, write_bundle

pytestmark = pytest.mark.needs("root", "apparmor")

PROFILE = """
profile pycontain-test flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  signal,
  deny /etc/passwd r,
}
"""
READ = ["sh", "-c", "cat /proc/self/attr/apparmor/current; cat /etc/passwd >/dev/null && echo readable"]


@pytest.fixture(scope="module", autouse=True)
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    security = Path("/sys/kernel/security")
    if not (security / "apparmor").exists():
        subprocess.run(["mount", "-t", "securityfs", "securityfs", security], check=True)
    path = tmp_path_factory.mktemp("profile") / "profile"
    path.write_text(PROFILE)
    parser = ["apparmor_parser", "--skip-cache"]
    subprocess.run([*parser, "--replace", path], check=True)
    yield
    subprocess.run([*parser, "--remove", path], check=True)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


@pytest.mark.parametrize(("no_new_privileges", "user"), [(True, 0), (False, 1000)])
def test_an_apparmor_profile(
    runtime: Runtime, rootfs: Path, tmp_path: Path, no_new_privileges: bool, user: int
) -> None:
    def change(config: dict[str, Any], name: str = "pycontain-test") -> None:
        config["process"].update(apparmorProfile=name, noNewPrivileges=no_new_privileges)
        config["process"]["user"] = {"uid": user, "gid": user}

    done = runtime("run", "-b", write_bundle(tmp_path / "b", rootfs, *READ, change=change), "aa-run")
    assert done.stdout == "pycontain-test (enforce)\n" and "Permission denied" in done.stderr
    bundle = write_bundle(tmp_path / "u", rootfs, *READ, change=lambda config: change(config, "unconfined"))
    assert runtime("run", "-b", bundle, "aa-un", check=True).stdout == "unconfined\nreadable\n"


def test_apparmor_of_exec(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    runtime("create", "-b", write_bundle(tmp_path / "b", rootfs, "sleep", "100"), "aa-exec", check=True)
    runtime("start", "aa-exec", check=True)
    assert runtime("exec", "aa-exec", *READ, check=True).stdout == "unconfined\nreadable\n"
    done = runtime("exec", "--apparmor", "pycontain-test", "aa-exec", *READ)
    assert done.stdout == "pycontain-test (enforce)\n" and "Permission denied" in done.stderr
    other = runtime(
        "exec", "-d", "--apparmor", "pycontain-test", "--pid-file", tmp_path / "pid", "aa-exec", "sleep", "99"
    )
    assert other.returncode == 0
    pid = (tmp_path / "pid").read_text()
    assert Path(f"/proc/{pid}/attr/apparmor/current").read_text() == "pycontain-test (enforce)\n"
    os.kill(int(pid), 9)


def test_an_apparmor_profile_that_is_not_loaded(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    bundle = write_bundle(
        tmp_path / "b", rootfs, change=lambda config: config["process"].update(apparmorProfile="acme")
    )
    assert runtime("run", "-b", bundle, "aa-none").stderr == (
        "pycontain-runtime: cannot set the process's attribute apparmor/exec to 'exec acme': write: "
        "ENOENT (no such file or directory)\n"
    )
