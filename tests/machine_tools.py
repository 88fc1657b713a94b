"""The second executor in tests: the settings that machines are started with, kept apart from the host's own."""

from __future__ import annotations

import os
from pathlib import Path

from tests.vm import kernel

EXECUTORS = ("namespaces", "vm")
# What a container in a machine needs of the host; "shares" (virtiofsd) too, as volumes are a part of every suite.
NEEDS = ("qemu", "mkfs.erofs", "mkfs.ext4", "virtiofsd", "tun", "guest_kernel")


def cache() -> Path:
    """Kernels, initramfs and templates are kept between runs, and made where they are not there yet."""
    made = kernel.cache() / "machines"
    made.mkdir(parents=True, exist_ok=True)
    # The distribution's kernel is fetched once, for these machines and for the one of tests/vm.
    (made.parent / "kernel").mkdir(mode=0o700, exist_ok=True)
    try:
        (made / "kernel").symlink_to("../kernel")
    except FileExistsError:
        pass
    return made


def settings(directory: Path, **more: str | int | bool) -> Path:
    """A vm.toml in ``directory`` for PYCONTAIN_VM_CONFIG. PYCONTAIN_TEST_KERNEL names another kernel to boot.

    Without KVM: whether it works is another test's question, and emulation works everywhere.
    """
    values: dict[str, str | int | bool] = {"cache": str(cache()), "accel": "tcg", **more}
    chosen = os.environ.get("PYCONTAIN_TEST_KERNEL")
    if chosen:
        values.setdefault("kernel", chosen)
    path = directory / "vm.toml"
    lines = (f"{key} = {str(v).lower() if isinstance(v, bool) else repr(v)}\n" for key, v in values.items())
    path.write_text("".join(lines))
    return path
