"""The machines of ``--isolation vm``: what is there for them, what is missing, and a kernel of their own."""

from __future__ import annotations

import os

from pycontain.runtime.errors import PycontainError
from pycontain.runtime.vm import accel, doctor, parts, qemu, settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pycontain.runtime.vm.build import Built

FILE = settings.FILE


def facts(now: float) -> dict[str, Any]:
    """Names and values for ``info``: what is known without booting or fetching anything. ``now``: Unix time."""
    try:
        found = settings.load({})
    except PycontainError as error:
        return {"Configuration": error.message}
    return {
        "Hypervisor": _hypervisor(found),
        "Kernel": _kernel(found),
        "Machine": _machine(found),
        **_acceleration(found, now),
    }


def _hypervisor(found: settings.Settings) -> str:
    try:
        path = parts.hypervisor_path(found.hypervisor)
        return f"{path} ({doctor.version(path)})"
    except PycontainError as error:
        return error.message


def _kernel(found: settings.Settings) -> str:
    if found.kernel is not None:
        return f"{found.kernel} ({'configured' if os.path.isfile(found.kernel) else 'configured, but not there'})"
    try:
        return f"{accel.fetched(found.cache).image} (the distribution's)"
    except (PycontainError, OSError):
        return "the distribution's, not fetched yet"


def _machine(found: settings.Settings) -> str:
    if found.machine != "auto":
        return found.machine
    try:
        return qemu.kind_of(found.kernel or accel.fetched(found.cache).image)
    except (PycontainError, OSError):
        return "auto"


def _acceleration(found: settings.Settings, now: float) -> dict[str, Any]:
    verdict = accel.known(found)
    if verdict is None:
        return {"Acceleration": "not probed yet"}
    known: dict[str, Any] = {"Acceleration": verdict.accel, "Reason": verdict.reason}
    if verdict.at:
        known["Probed"] = f"{_age(now - verdict.at)} ago, in {verdict.seconds:.2f} s"
    return known


def _age(seconds: float) -> str:
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} seconds"


def examine() -> tuple[list[dict[str, str]], bool]:
    """The checks of ``vm doctor`` (name, state, found, command), and whether a machine can be started."""
    found = doctor.checks(settings.load({}))
    return [vars(check) for check in found], doctor.able(found)


def kernel() -> str:
    """The path of the kernel that machines boot, which is fetched where it is the distribution's and not here yet."""
    return parts.kernel_of(settings.load({})).image


def sweep() -> list[str]:
    """Remove from the cache of machines what nobody can use any more; a line for each."""
    from pycontain.runtime.vm import cache

    return cache.sweep(settings.load({}).cache)


def build_kernel(output: str | None, source: str | None, jobs: int | None, say: Callable[[str], None]) -> Built:
    """See runtime.vm.build."""
    from pycontain.runtime.vm import build

    return build.build(settings.load({}).cache, output=output, source=source, jobs=jobs, say=say)
