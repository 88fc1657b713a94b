"""Every claim can fail: its attack succeeds where nothing holds it, and is held by the levels that say so."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycontain.isolation import bundle as bundles
from pycontain.isolation import decoys, outcomes, outcomes_entering
from pycontain.isolation import world as worlds
from pycontain.isolation.bundle import Kind
from pycontain.isolation.containers import Machine, _Guest
from pycontain.isolation.levels import level
from pycontain.isolation.model import Job, Level
from pycontain.isolation.outcomes_claims import ATTACKS, ENTERING
from pycontain.isolation.outcomes_judge import same_kernel
from pycontain.isolation.runner import Opened
from pycontain.isolation.tenants import Running
from pycontain.isolation.world import World
from pycontain.runtime.errors import PycontainError
from tests import machine_tools

pytestmark = pytest.mark.needs("root")
HELD = frozenset({"container", "container-noseccomp", "hardened", "rootless", "runc", "crun"})
OPEN = frozenset({"opened", "process"})
LEVELS = OPEN | HELD | {"chroot"}
# What chroot holds: there are no paths to what is outside of it, and the kernel makes no user namespace there.
BY_CHROOT = {"file_path", "file_write", "descriptors", "socket_path", "user_namespace", "mount_nested"}
# What root on the host has none of either, and only a careless runtime gives.
BY_ALL = {"inherited_capabilities"}
# Where containers leak as well.
ALSO = {
    # Root's keyring is one for all containers without a user namespace: the filter keeps it.
    "keyring_user": {"container-noseccomp"},
    # Only "no new privileges", and a root file system that cannot be written to, are in the way.
    "set_user_id": {"container", "container-noseccomp", "runc", "crun"},
    # CAP_NET_RAW is one of the fourteen.
    "packet_socket": {"container", "container-noseccomp", "rootless", "runc", "crun"},
    # The filter is all that keeps these.
    **{
        claim: {"container-noseccomp"}
        for claim in "user_namespace mount_nested io_uring perf userfaultfd vsock keyctl personality".split()
    },
}
# Settings by which a host keeps these from whoever has no capability, from that value on.
RESTRICTED = {
    "perf": ("kernel/perf_event_paranoid", 3),
    "io_uring": ("kernel/io_uring_disabled", 1),
    "mount_nested": ("kernel/apparmor_restrict_unprivileged_userns", 1),
}
# What a kernel can be built without; "process" says so, by these errors.
OPTIONAL = set(
    "release_agent kernel_memory io_ports sysrq kernel_module kexec crypto_socket vsock userfaultfd".split()
)
NOT_BUILT = ("(ENOSYS).", "(ENOENT).", "(ENXIO).", "(EAFNOSUPPORT).")
CLAIMS = [one.claim.name for one in (*ATTACKS, *ENTERING)]
Verdicts = dict[str, dict[str, tuple[str, str]]]


def take(made: World, one: Level) -> dict[str, tuple[str, str]]:
    found = (*outcomes.take(made, one), *outcomes_entering.take(made, one))
    return {outcome.claim: (outcome.verdict, outcome.detail) for outcome in found}


def inside(main: Callable[[World], Any], path: Path) -> Any:
    """What ``main`` gives in a world of its own: there, attacks see no process of this host."""

    def run(made: World) -> int:
        path.write_text(json.dumps(main(made)))
        return 0

    assert worlds.enter(run) == 0
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Of every level that there is here, but gVisor and machines."""

    def main(made: World) -> Verdicts:
        levels: list[Level] = [level(name) for name in sorted(LEVELS - {"opened"})]
        return {one.name: take(made, one) for one in (*levels, Opened(level("container"))) if one.missing(made) is None}

    found: Verdicts = inside(main, tmp_path_factory.mktemp("outcomes") / "verdicts")
    return found


def restricted(claim: str) -> set[str]:
    name, least = RESTRICTED.get(claim, ("", 0))
    setting = Path("/proc/sys", name)
    return {"container-noseccomp"} if setting.is_file() and int(setting.read_text()) >= least else set()


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_attack_works_where_nothing_holds_it_and_nowhere_else(verdicts: Verdicts, claim: str) -> None:
    for needed in LEVELS - {"runc", "crun"}:
        assert needed in verdicts
    found = {name: there[claim] for name, there in verdicts.items() if claim in there}
    if not found:
        pytest.skip(f"needs a decoy for {claim}")
    expected = {"opened"} if claim in BY_ALL else OPEN if claim in BY_CHROOT else OPEN | {"chroot"}
    expected = expected | (ALSO.get(claim, set()) - restricted(claim))
    absent = claim in OPTIONAL and found["process"][0] == "held" and found["process"][1].endswith(NOT_BUILT)
    if absent:
        expected = frozenset()
    assert {name for name, (verdict, _) in found.items() if verdict == "leaked"} == expected & set(found), found
    if absent:
        pytest.skip(f"needs a kernel that has what {claim} attacks: {found['process'][1]}")


def test_details_are_sentences_that_say_what_happened(verdicts: Verdicts) -> None:
    assert verdicts["process"]["file_handle"][1] == "Read what is in the decoy: open_by_handle_at."
    assert verdicts["opened"]["descriptors"][1] == "Read what is in the decoy: upwards from descriptor 3."
    assert verdicts["opened"]["root_escape"][1] == "Read what is in the decoy: an umount of the root directory."
    assert verdicts["container"]["file_handle"][1] == "open_by_handle_at: Operation not permitted (EPERM)."
    assert verdicts["container"]["disk_own_node"][1].endswith("Operation not permitted (EPERM).")
    assert "pycontain-runtime" in verdicts["opened"]["entering_program"][1]
    for there in verdicts.values():
        assert all(detail.endswith(".") and "\n" not in detail for _, detail in there.values())


def test_a_world_leaves_nothing_of_its_decoys(tmp_path: Path) -> None:
    def main(made: World) -> list[str]:
        there = made.once(decoys.make)
        assert there.missing == {}
        return there.arguments

    words = dict(word.split("=", 1) for word in inside(main, tmp_path / "words"))
    minor = words["disk"].split(":")[1]
    name = words["user_key"]
    until = time.monotonic() + 10
    while name in Path("/proc/keys").read_text():  # the kernel collects a key some time after nobody has it
        assert time.monotonic() < until
        time.sleep(0.1)
    backing = Path(f"/sys/block/loop{minor}/loop/backing_file")
    assert not backing.exists() or "pycontain-isolation" not in backing.read_text()
    assert not Path(f"/dev/shm{words['shm_name']}").exists()
    assert not Path(words["file"]).exists()


def test_an_attack_that_does_not_end_proves_nothing_and_the_others_are_tried(tmp_path: Path) -> None:
    def main(made: World) -> Any:
        process = level("process")
        said = process.run(made, Job(("/probe", "outcomes", "only=personality,keyctl", "ms=0")))
        lines = outcomes.answers(said.stdout)
        killed = {**lines, "personality": {"reached": 0, "signal": signal.SIGSYS}}
        given = outcomes.judged(made.once(decoys.make), killed, 0, 0, False)
        first = next(given)
        with pytest.raises(PycontainError, match="these attacks have not come to an end: keyctl$"):
            next(given)
        return said.status, lines, [first.claim, first.verdict, first.detail]

    status, lines, first = inside(main, tmp_path / "found")
    assert status == 0 and set(lines) == {"self", "personality", "keyctl"}
    assert lines["keyctl"]["reached"] == 0 and "how" not in lines["keyctl"]
    assert first == ["personality", "held", "The seccomp filter ended the program (SIGSYS)."]


def test_another_kernel_is_told_by_its_boot_id_or_by_its_age() -> None:
    here = os.uname()
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    mine = {"boot_id": "", "release": here.release, "version": here.version, "boottime": now}
    assert same_kernel(mine, now, now)
    assert not same_kernel({**mine, "boottime": now - 60}, now, now)
    assert not same_kernel({**mine, "version": "#1 other"}, now, now)
    assert not same_kernel({**mine, "boot_id": "0000"}, now, now)
    assert same_kernel({**mine, "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(), "boottime": 0}, now, now)


def test_gvisor_holds_all(tmp_path: Path) -> None:
    found = inside(lambda made: level("runsc").missing(made) or take(made, level("runsc")), tmp_path / "found")
    if isinstance(found, str):
        pytest.skip(f"needs the level runsc: {found}")
    assert [claim for claim, (verdict, _) in found.items() if verdict != "held"] == []
    assert found["io_uring"][1] == "Reached a kernel of its own, not the host's: io_uring_setup."


class Unlocked(Machine):
    """A machine, and in it a container without any defence: what its guest's kernel can do is within reach."""

    def made(self, world: World, job: Job) -> Running:
        return _Unlocked(world, self, job)


# AF_ALG and AF_VSOCK are modules of the distribution's kernel, and a guest has no modprobe to find them.
_BOOT = """
from pycontain.isolation import boot
from pycontain.runtime.vm import initramfs
initramfs.MODULES += ("algif_hash", "vsock")
boot.main()
"""


class _Unlocked(_Guest):
    def run_words(self) -> list[str]:
        words = super().run_words()
        at = words.index("-m")
        return [*words[:at], "-c", _BOOT, *words[at + 2 :]]

    def write(self) -> None:
        config = bundles.configuration(self.job, self.kind, root="rootfs", cgroup=self.container.path, hostname=self.id)
        caps = bundles.bounding()
        config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), caps)
        del config["linux"]["seccomp"], config["linux"]["maskedPaths"], config["linux"]["readonlyPaths"]
        config["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
        for mount in config["mounts"]:
            mount["options"] = [option for option in mount["options"] if option != "ro"]
        bundles.write(self.directory, config)


@pytest.mark.needs(*machine_tools.NEEDS)
def test_a_machine_holds_all_even_where_its_guest_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(machine_tools.settings(tmp_path)))
    unlocked = Unlocked("unlocked", "", "", Kind(machine=True), "tcg")

    def main(made: World) -> Any:
        why = unlocked.lacks(made)
        return why or {one.claim: (one.verdict, one.detail) for one in outcomes.take(made, unlocked)}

    found = inside(main, tmp_path / "found")
    if isinstance(found, str):
        pytest.skip(f"needs the level vm-tcg: {found}")
    assert [claim for claim, (verdict, _) in found.items() if verdict != "held"] == []
    # The attacks that this host's kernel may have nothing for can succeed: with the guest's they do, but for cgroups v1.
    opened = {claim for claim, (_, detail) in found.items() if detail.startswith("Reached a kernel of its own")}
    assert opened >= OPTIONAL - {"release_agent"}, found
