"""Who waits for a template that another makes, and what QEMU sees of its kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pycontain.runtime.errors import Conflict
from pycontain.runtime.vm import template
from tests.runtime_tools import REPOSITORY

BUILDER = """
import os, sys
from pycontain.runtime.vm import template
template._lock(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_builder_that_is_stopped_is_waited_for_so_long_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "_BUILD_SECONDS", 0.2)
    done = str(tmp_path / "key")
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILDER, done],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    with builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"locked\n"
        builder.send_signal(signal.SIGSTOP)
        with pytest.raises(
            Conflict, match=rf"^cannot make a template: process {builder.pid} has not made it"
        ) as caught:
            template._lock(done)
        assert caught.value.hint == f"kill -9 {builder.pid}, if it is stopped"
        builder.kill()
        builder.wait()
        os.close(template._lock(done))
        assert Path(f"{done}.lock").read_text() == str(os.getpid())


def test_a_clone_s_hypervisor_reads_the_header_of_a_kernel_that_it_would_hold_in_memory(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    start = (b"\0" * 0x202 + b"HdrS").ljust(64 << 10, b"\1")
    kernel.write_bytes(start + b"\2" * (1 << 20))
    template._keep_header(str(kernel), str(tmp_path / "kernel"))
    assert (tmp_path / "kernel").read_bytes() == start
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF".ljust(1 << 20, b"\2"))
    template._keep_header(str(tmp_path / "vmlinux"), str(tmp_path / "elf"))
    assert not (tmp_path / "elf").exists()
