"""The limits on a real cgroup v2 kernel: runs the tests that need one in the machine of tests/vm."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tests.vm import machine

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.needs("root", "qemu", "vm"), pytest.mark.timeout(400)]


def in_machine(*command: str, timeout: float = 300.0) -> tuple[int, str]:
    output = io.BytesIO()
    status = machine.run(command, output=output, cwd=str(ROOT), timeout=timeout)
    return status, output.getvalue().decode(errors="replace")


def test_cgroup_tests_on_v2() -> None:
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--must-have", "root,cgroup2"]
    files = ["tests/integration/test_cgroup_v2.py", "tests/integration/test_cgroup_any.py", "tests/unit/test_host.py"]
    status, output = in_machine(*pytest_, *files)
    assert status == 0, output
    assert " passed" in output
    assert "skipped" not in output


def test_the_machine_passes_on_output_status_and_signals() -> None:
    status, output = in_machine(
        "sh", "-c", "echo out; echo err >&2; grep -c cgroup2 /proc/mounts; touch /made; kill -TERM $$"
    )
    assert (status, output) == (128 + 15, "out\nerr\n1\n")
    assert not Path("/made").exists()


def test_a_command_that_is_not_there() -> None:
    status, output = in_machine("no-such-command")
    assert (status, output) == (127, "test machine: run no-such-command: No such file or directory\n")
