"""Whether an attack reached the host: what it says is held against what only the host knows."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from pycontain.isolation.decoys import Decoys
from pycontain.isolation.model import Verdict
from pycontain.isolation.outcomes_claims import Attack

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK_ERROR = 2.0  # seconds


class Judge:
    """What the host knows beside what an attack says."""

    def __init__(self, there: Decoys, self_: dict[str, Any], before: float, cookie: int, named: bool) -> None:
        self._there = there
        self._cookie = cookie
        self._named = named
        self._own_kernel = not same_kernel(self_, before, time.clock_gettime(time.CLOCK_BOOTTIME))
        self._host_pid = not self._own_kernel and self_["pid_namespace"] == os.stat("/proc/self/ns/pid").st_ino

    def verdict(self, attack: Attack, answer: dict[str, Any]) -> tuple[Verdict, str] | None:
        """None where the attack has not come to its end: that proves nothing."""
        if answer.get("signal") == signal.SIGSYS:
            return "held", "The seccomp filter ended the program (SIGSYS)."
        if "how" not in answer:
            return None
        how = answer["how"]
        if not answer["reached"]:
            number = int(answer["errno"])
            if not number:
                return "held", f"{how[:1].upper()}{how[1:]}." if how else "There was nothing to try it on."
            return "held", f"{how}: {os.strerror(number)} ({errno.errorcode.get(number, number)})."
        if attack.proof == "secret":
            if answer["found"] == self._there.secrets[attack.claim.name]:
                return "leaked", f"Read what is in the decoy: {how}."
            return "held", f"Read something else: {how}."
        if attack.proof == "signal":
            if self._there.signalled(self._cookie):
                return "leaked", f"The decoy process got it: {how}."
            return "held", f"Reached another process: {how}."
        if attack.proof == "name":
            if self._named:
                return "leaked", f"The host had another name: {how}."
            return "held", f"Changed a name of its own: {how}."
        if self._own_kernel:
            return "held", f"Reached a kernel of its own, not the host's: {how}."
        if attack.proof == "pid" and not self._host_pid:
            return "held", f"Reached a process namespace of its own: {how}."
        return "leaked", f"The host's kernel did not refuse: {how}."


def same_kernel(there: dict[str, Any], before: float, after: float) -> bool:
    """Whether a probe ran on this very kernel: the same boot id, or where it saw none, the same version and the same
    time since boot, which was between ``before`` and ``after`` (seconds of CLOCK_BOOTTIME)."""
    if there["boot_id"]:
        return bool(there["boot_id"] == _BOOT_ID.read_text().strip())
    here = os.uname()
    if (there["release"], there["version"]) != (here.release, here.version):
        return False
    return before - _CLOCK_ERROR < float(there["boottime"]) < after + _CLOCK_ERROR
