"""Names and properties of systemd's units from config.json, by systemd.resource-control(5) and GVariant's text format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pycontain.runtime.errors import PycontainError, SpecError, Unsupported
from pycontain.runtime.kernel.systemd import scope_of, slice_path
from pycontain.runtime.kernel.systemd_properties import annotated, bitmap, of_devices, of_settings, version


@pytest.mark.parametrize(
    ("path", "user", "wanted"),
    [
        ("", False, ("system.slice", "pycontain-web.scope")),
        ("", True, ("user.slice", "pycontain-web.scope")),
        ("machine.slice:libpod:0123", False, ("machine.slice", "libpod-0123.scope")),
        (":docker:x.y", False, ("system.slice", "docker-x.y.scope")),
        ("a.slice::x", False, ("a.slice", "x.scope")),
    ],
)
def test_a_cgroups_path_names_slice_and_unit(path: str, user: bool, wanted: tuple[str, str]) -> None:
    assert scope_of(path, "web", user) == wanted


@pytest.mark.parametrize("path", ["/a/b", "a.slice:b", "a.slice:b:c:d", "a.slice:b:", "a.slice:b:c/d", "a.slice:b:c d", f"::{'x' * 250}"])
def test_other_cgroups_paths_are_refused(path: str) -> None:
    with pytest.raises(SpecError, match=r"^\$\.linux\.cgroupsPath: found "):
        scope_of(path, "web", False)


def test_a_slice_is_no_place_for_processes() -> None:
    with pytest.raises(Unsupported, match=r"'c.slice' is a slice"):
        scope_of("a.slice:b:c.slice", "web", False)


@pytest.mark.parametrize(
    ("name", "path"),
    [("-.slice", ""), ("system.slice", "/system.slice"), ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice")],
)
def test_a_slices_name_holds_its_place(name: str, path: str) -> None:
    assert slice_path(name) == path


@pytest.mark.parametrize("name", ["", ".slice", "-", "a", "a--b.slice", "-a.slice", "a-.slice", "../a.slice", "a/b.slice", "a b.slice"])
def test_other_slices_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="which is not the name of a slice"):
        slice_path(name)


def test_versions() -> None:
    assert [version(text) for text in ("252.38-1~deb12u1", "v245.4", "259", "devel")] == [252, 245, 259, 0]


@pytest.mark.parametrize(("text", "wanted"), [("0", b"\x01"), ("0-2,8", b"\x07\x01"), ("1, 3", b"\x0a"), ("16", b"\0\0\x01")])
def test_processors_are_bits(text: str, wanted: bytes) -> None:
    assert bitmap(text) == wanted


@pytest.mark.parametrize("text", ["", "a", "1-", "1-b", "70000", "-1"])
def test_what_is_no_list_of_processors_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="wanted a list such as"):
        bitmap(text)


INFINITY = (1 << 64) - 1


@pytest.mark.parametrize(
    ("file", "value", "wanted"),
    [
        ("memory.max", "1048576", [("MemoryMax", ("t", 1048576))]),
        ("memory.max", "max", [("MemoryMax", ("t", INFINITY))]),
        ("memory.max", "0", []),  # systemd takes no 0: the file has it
        ("memory.swap.max", "0", [("MemorySwapMax", ("t", 0))]),
        ("pids.max", "0", []),
        ("pids.max", "7", [("TasksMax", ("t", 7))]),
        ("io.weight", "default 50", [("IOWeight", ("t", 50))]),
        ("io.weight", "8:0 50", []),
        ("cpu.idle", "1", [("CPUWeight", ("t", 0))]),
        ("cpuset.mems", "0-1", [("AllowedMemoryNodes", ("ay", b"\x03"))]),
        ("cpu.max", "max", [("CPUQuotaPerSecUSec", ("t", INFINITY))]),
        ("cpu.max", "50000 100000", [("CPUQuotaPeriodUSec", ("t", 100000)), ("CPUQuotaPerSecUSec", ("t", 500000))]),
        ("cpu.max", "1001 100000", [("CPUQuotaPeriodUSec", ("t", 100000)), ("CPUQuotaPerSecUSec", ("t", 20000))]),
        ("hugetlb.2MB.max", "0", []),
    ],
)
def test_files_and_their_properties(file: str, value: str, wanted: list[Any]) -> None:
    assert of_settings([("x", f"/sys/fs/cgroup/a.scope/{file}", value)], 252) == wanted


def test_what_an_old_systemd_does_not_know_is_left_to_the_files() -> None:
    settings = [("x", f"/a/{file}", value) for file, value in (("cpuset.cpus", "0"), ("cpu.idle", "1"), ("cpu.max", "1000 1000"))]
    assert of_settings(settings, 241) == [("CPUQuotaPerSecUSec", ("t", 1000000))]


DENY = {"allow": False, "access": "rwm"}


def allow(kind: str, major: int = -1, minor: int = -1, access: str = "rwm") -> dict[str, Any]:
    return {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}


def test_device_rules_that_are_a_list_of_what_is_allowed() -> None:
    rules = [allow("c", 9, 9), DENY, allow("c", 1, 3), allow("b", 8, -1, "r"), allow("c", access="m"), allow("b", access="m")]
    allowed = [("/dev/char/1:3", "rwm"), ("block-8", "r"), ("char-*", "m"), ("block-*", "m")]
    assert of_devices([DENY, *rules[2:]]) == [("DevicePolicy", ("s", "strict")), ("DeviceAllow", ("a(ss)", [])), ("DeviceAllow", ("a(ss)", allowed))]


@pytest.mark.parametrize(
    "rules", [[], [allow("a")], [DENY, allow("c", 1, 3), {**allow("c", 1, 3), "allow": False}], [DENY, allow("c", -1, 3)], [allow("c", 1, 3), DENY, allow("a")]]
)
def test_other_device_rules_are_left_to_the_program(rules: list[dict[str, Any]]) -> None:
    assert of_devices(rules) == [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("CollectMode", "'inactive-or-failed'", ("CollectMode", ("s", "inactive-or-failed"))),
        ("TimeoutStopUSec", "uint64 123456789", ("TimeoutStopUSec", ("t", 123456789))),
        ("TimeoutStopSec", "5", ("TimeoutStopUSec", ("t", 5000000))),
        ("TimeoutStopSec", "0.25", ("TimeoutStopUSec", ("t", 250000))),
        ("SendSIGHUP", "true", ("SendSIGHUP", ("b", True))),
        ("KillSignal", " int32 0x0f ", ("KillSignal", ("i", 15))),
        ("After", "['a.service', \"b's.service\"]", ("After", ("as", ["a.service", "b's.service"]))),
        ("After", "@as []", ("After", ("as", []))),
        ("NUMAMask", "[byte 1, 255]", ("NUMAMask", ("ay", [1, 255]))),
        ("Description", r"'it\'s \"x\"'", ("Description", ("s", 'it\'s "x"'))),
    ],
)
def test_annotations_are_properties(name: str, text: str, wanted: Any) -> None:
    assert annotated({"other": "x", f"org.systemd.property.{name}": text}) == [wanted]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        # More than one, by whatever might separate them (CVE-2022-0811).
        ("TimeoutStopUSec+PIDs", "uint64 1"), ("A.B.C", "1"), ("TimeoutStopUSec=1\nPIDs", "uint64 1"), ("ab", "1"), ("", "1"), ("\udcff", "1"), ("ÄÖÜ", "1"),
        ("CollectMode", "'a', 'b'"), ("CollectMode", "'a' 'b'"), ("CollectMode", "'a'\n'b'"), ("CollectMode", "'a"), ("CollectMode", "a"),
        ("CollectMode", ""), ("TimeoutStopUSec", "uint64 -1"), ("TimeoutStopUSec", "uint64 18446744073709551616"), ("TimeoutStopUSec", "byte 256"),
        ("After", "['a', 1]"), ("After", "['a'"), ("After", "[]"), ("After", "['a' 'b']"), ("After", "@a{sv} {}"), ("TimeoutStopSec", "'x'"),
        ("CollectMode", "uint64 'x'"), ("CollectMode", r"'\q'"), ("CollectMode", "<'x'>"),
        # What config.json says in its own words.
        ("PIDs", "[uint32 1]"), ("Slice", "'a.slice'"), ("Delegate", "false"), ("DevicePolicy", "'auto'"), ("DeviceAllow", "@as []"),
        # What reaches beyond the container (CVE-2024-3154).
        ("FailureAction", "'poweroff'"), ("JobTimeoutAction", "'reboot'"), ("Conflicts", "['sshd.service']"), ("OnFailure", "['x.service']"), ("Wants", "['x.service']"),
    ],
)  # fmt: skip
def test_other_annotations_are_refused_by_their_path(name: str, text: str) -> None:
    with pytest.raises(PycontainError) as failure:
        annotated({f"org.systemd.property.{name}": text})
    assert failure.value.message.startswith(f"$.annotations[{json.dumps('org.systemd.property.' + name)}]: ")
    failure.value.message.encode()  # it can be printed
