"""What a container in a machine of its own sees, what it leaves of the host alone, and what it is refused: tried.

The attacker is root in a privileged container, which in a machine is the guest's kernel's own root.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.machines import idle_clone
from pycontain.runtime import lifecycle
from tests import machine_tools
from tests.engine_tools import IMAGE, Host
from tests.runtime_tools import Runtime, make_rootfs, write_bundle
from tests.vm import kernel

pytestmark = [
    pytest.mark.needs("root", "overlayfs", "bridge", "veth", "nft", *machine_tools.NEEDS),
    pytest.mark.timeout(120),
]
LOOP = "while :; do sleep 0.1; done"
NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup")
MARK = "pycontain-marker-5e0d1f"
PATTERN = "pycontain-marker-5e0[d]1f"  # finds the mark, and not itself in a command line


@pytest.fixture
def executor(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(machine_tools.settings(tmp_path_factory.mktemp("vm"))))
    return "vm"


def inside(host: Host, script: str, *words: str) -> str:
    """What a script prints in a machine of its own, as the guest's root; "PRIVILEGED" leaves nothing out."""
    more = [word for word in words if word != "PRIVILEGED"] + (["--privileged"] if "PRIVILEGED" in words else [])
    return host.out("run", "--rm", *more, IMAGE, "sh", "-c", script, status=None)


@contextlib.contextmanager
def running(host: Host, *words: str, name: str = "one") -> Iterator[str]:
    """A detached container; its id."""
    identifier = host.out("run", "-d", "--name", name, *words, IMAGE, "sh", "-c", LOOP).strip()
    try:
        yield identifier
    finally:
        host("rm", "-f", name, status=None)


def processes(host: Host, identifier: str) -> dict[str, int]:
    """The container's processes on this host by what they are."""
    found = {}
    for pid in lifecycle.ps(identifier, root=host.engine.runtime_root):
        program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        assert program not in found, "one of each"
        found[os.path.basename(program).partition("-")[0]] = pid
    return found


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def namespace(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def machine_of(host: Host, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.out("inspect", name))[0]["Machine"]
    return found


# ---- the guest is another kernel


def test_the_kernel_is_the_guest_s(host: Host) -> None:
    with running(host):
        release, version = host.out("exec", "one", "sh", "-c", "uname -r; cat /proc/version").splitlines()
        booted = machine_of(host, "one")["Kernel"]
    assert f"Linux version {release} " in version
    if "PYCONTAIN_TEST_KERNEL" in os.environ:
        assert booted == os.environ["PYCONTAIN_TEST_KERNEL"]
        assert version + "\n" != Path("/proc/version").read_text()
    else:
        assert os.path.samefile(booted, kernel.kernel().image)
        assert release == kernel.kernel().release


def test_inspect_says_what_it_runs_on(host: Host) -> None:
    with running(host, "--memory", "128m", "--cpus", "2"):
        (found,) = json.loads(host.out("inspect", "one"))
        assert found["HostConfig"]["Isolation"] == "vm"
        machine = found["Machine"]
        assert machine["Acceleration"] == "tcg"
        assert machine["Kind"] in ("microvm", "q35")
        assert machine["Cpus"] == 2
        assert machine["Memory"] > 128 << 20
        assert os.path.isdir(machine["Template"])
        host("stop", "-t", "0", "one")
        assert json.loads(host.out("inspect", "one"))[0]["Machine"] is None


def test_limits_are_in_the_guest_s_kernel(host: Host) -> None:
    files = "memory.max cpu.max pids.max"
    script = f"cd /sys/fs/cgroup && cat {files}"
    limits = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "20")
    assert inside(host, script, "--network", "none", *limits).splitlines() == [str(64 << 20), "50000 100000", "20"]


def test_stats_and_top_speak_of_the_guest(host: Host) -> None:
    with running(host, "--memory", "64m", "--pids-limit", "20") as identifier:
        root = host.engine.runtime_root
        before = lifecycle.stats(identifier, root=root)
        assert before["memory"]["limit"] == 64 << 20
        assert 0 < before["memory"]["usage"] < 64 << 20
        assert before["pids"]["limit"] == 20
        assert before["oom_kills"] == 0
        host("exec", "one", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
        assert lifecycle.stats(identifier, root=root)["cpu"]["usage"] > before["cpu"]["usage"]
        host("exec", "-d", "-u", "1234", "one", "sleep", "1000")
        rows = lifecycle.top(identifier, root=root)
        assert [row["uid"] for row in rows if row["command"] == "sleep 1000"] == [1234]
        assert not any("qemu" in row["command"] or "pycontain" in row["command"] for row in rows)
        host("pause", "one")
        for refused in (("top", "one"),):
            assert host(*refused, status=1).stderr == (
                'pycontain: cannot list the processes of container "one": it is paused, and its machine with it\n'
                "\nhint: pycontain unpause one\n"
            )


def test_pause_stops_the_guest_and_its_clock_is_right_afterwards(host: Host) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done"
    host(
        "run",
        "-d",
        "--name",
        "one",
        "--network",
        "none",
        "-v",
        "count:/c",
        IMAGE,
        "sh",
        "-c",
        script.replace("/count", "/c/n"),
    )
    count = host.data / "volumes/count/_data/n"
    end = time.monotonic() + 10
    while not count.exists() and time.monotonic() < end:
        time.sleep(0.05)
    host("pause", "one")
    before = count.read_text()
    time.sleep(1.5)
    assert count.read_text() == before
    host("unpause", "one")
    assert abs(int(host.out("exec", "one", "date", "+%s")) - time.time()) < 2
    end = time.monotonic() + 10
    while count.read_text() in ("", before):
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.05)
    host("rm", "-f", "one")
    host("system", "prune", "-f", "--volumes")


# ---- what it is on this host


def test_one_hypervisor_and_one_stand_in_without_any_right(host: Host) -> None:
    with running(host) as first, running(host, name="two") as second:
        both = [processes(host, first), processes(host, second)]
        users = set()
        for found in both:
            assert sorted(found) == ["pycontain", "qemu"]
            for pid in found.values():
                for thread in os.listdir(f"/proc/{pid}/task"):
                    seen = status(int(thread))
                    assert len(set(seen["Uid"].split() + seen["Gid"].split())) == 1
                    assert int(seen["Uid"].split()[0]) >= 0x60000000
                    assert seen["Groups"] == ""
                    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                        assert int(seen[name], 16) == 0, (found, name)
                    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
                users.add(status(pid)["Uid"].split()[0])
            assert int(status(found["qemu"])["CapBnd"], 16) == 0
            assert Path(f"/proc/{found['qemu']}/environ").read_bytes() == b""
        assert len(users) == 2, "each machine is a user of its own"
        for kind in NAMESPACES:
            links = {namespace("self", kind), *(namespace(found["qemu"], kind) for found in both)}
            assert len(links) == 3, kind


def test_the_hypervisor_s_root_has_libraries_and_its_own_files(host: Host) -> None:
    with running(host) as identifier:
        pid = processes(host, identifier)["qemu"]
        root = Path(f"/proc/{pid}/root")
        assert set(os.listdir(root)) <= {"usr", "lib", "lib64", "bin", "etc", "dev", "vm"}
        assert os.listdir(root / "etc") == ["ld.so.cache"]
        assert set(os.listdir(root / "dev")) == {"null", "urandom"}
        assert set(os.listdir(root / "vm")) == {"kernel", "initrd", "disk0", "disk1", "ram"}
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        writable = {line.split()[4] for line in lines if "rw" in line.split()[5].split(",")}
        assert writable == {"/vm/disk1", "/vm/ram"}
        wanted = r"/dev/null|/memfd:pycontain-machine \(deleted\)|(socket|pipe):\[\d+\]|anon_inode:.*|/dev/net/tun|/vm/(disk[01]|ram)"
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            # QEMU keeps the template's state open, a file of the host that is mounted nowhere.
            assert re.fullmatch(wanted, target) or target.endswith("/state"), target


def test_the_stand_in_has_only_its_descriptors(host: Host) -> None:
    with running(host) as identifier:
        pid = processes(host, identifier)["pycontain"]
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            own = f"{host.run_directory}/runtime/{identifier}/oom"
            assert (
                re.fullmatch(r"/dev/null|(socket|pipe):\[\d+\]|anon_inode:\[(signalfd|eventfd)\]", target)
                or target == own
            )


def test_the_helper_for_volumes_sees_them_and_nothing_else(host: Host, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("of the host")
    with running(host, "-v", f"{tmp_path}/a:/a", "-v", f"{tmp_path}/a:/b:ro") as identifier:
        found = processes(host, identifier)
        assert sorted(found) == ["pycontain", "qemu", "virtiofsd"]
        pid = found["virtiofsd"]
        files = (
            "chown dac_override dac_read_search fowner fsetid setgid setuid sys_chroot mknod setfcap setpcap".split()
        )
        numbers = dict(zip(files, (0, 1, 2, 3, 4, 6, 7, 18, 27, 31, 8)))
        for thread in os.listdir(f"/proc/{pid}/task"):
            seen = status(int(thread))
            assert int(seen["CapEff"], 16) & ~sum(1 << number for number in numbers.values()) == 0
            assert int(seen["CapPrm"], 16) == int(seen["CapEff"], 16)
            assert seen["NoNewPrivs"] == "1"
        assert status(pid)["Seccomp"] == "2"  # a thread that its library made before has none
        for kind in NAMESPACES:
            assert namespace(pid, kind) != namespace("self", kind)
            assert (namespace(pid, kind) == namespace(found["qemu"], kind)) == (kind != "mnt")
        assert sorted(os.listdir(f"/proc/{pid}/root")) == ["0", "1"]
        (line,) = (line for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if line.split()[4] == "/1")
        assert "ro" in line.split()[5].split(",")


# ---- what the guest cannot see


def test_no_process_of_the_host_is_in_sight(host: Host) -> None:
    with subprocess.Popen(["sleep", "98765"]) as ours:
        script = f"cat /proc/[0-9]*/cmdline | tr '\\0' ' '; kill -9 {ours.pid}; [ -e /proc/{ours.pid} ] && echo there"
        seen = inside(host, script, "PRIVILEGED")
        assert ours.poll() is None
        ours.kill()
    assert "98765 " not in seen.replace("kill -9", "")
    assert "qemu" not in seen and "there\n" not in seen


def test_no_file_of_the_host_is_in_sight(host: Host, tmp_path: Path) -> None:
    """Every file system that there might be, every block device read raw."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/mine").write_text("x")
    (tmp_path / MARK).write_text(MARK)
    (tmp_path / "shared/out").symlink_to(tmp_path / MARK)
    script = f"""
        cd /
        for tag in shares rootfs host root /dev/root 0 kataShared hostshare; do
            for kind in 9p virtiofs; do
                mkdir -p /try; mount -t $kind $tag /try 2>/dev/null && {{ echo mounted $kind $tag; ls /try /try/*; umount /try; }}
            done
        done
        cat /vol/out /vol/../{MARK} /vol/../../{MARK} 2>/dev/null
        for block in /sys/block/*; do
            [ -e $block/device ] || continue
            name=${{block##*/}}; numbers=$(cat $block/dev); mknod /tmp/$name b ${{numbers%:*}} ${{numbers#*:}}
            echo device $name $(cat $block/size) $(cat $block/serial) $(cat $block/ro)
            for kind in ext4 erofs squashfs; do
                mount -t $kind /tmp/$name /try 2>/dev/null && {{ find /try -name '{PATTERN}'; umount /try; }}
            done
        done
        find / -name '{PATTERN}' 2>/dev/null
        dd if=/tmp/$(basename $(dirname $(grep -l disk0 /sys/block/*/serial))) bs=64k 2>/dev/null | sha256sum
        dd if=/tmp/$(basename $(dirname $(grep -l disk1 /sys/block/*/serial))) bs=64k count=512 2>/dev/null | tr -d '\\0' | grep -c '{PATTERN}'
    """
    seen = inside(host, script, "PRIVILEGED", "-v", f"{tmp_path}/shared:/vol")
    lines = seen.splitlines()
    assert [line for line in lines if line.startswith("mounted")] in ([], ["mounted virtiofs shares"])
    if "mounted virtiofs shares" in lines:
        at = lines.index("mounted virtiofs shares")
        assert sorted(lines[at + 1 : at + 6]) == sorted(["0", "", "/try/0:", "mine", "out"][:5]) or "mine" in seen
    assert MARK not in seen
    devices = {line.split()[3]: line.split() for line in lines if line.startswith("device")}
    assert sorted(devices) == ["disk0", "disk1"]
    assert devices["disk0"][4] == "1" and devices["disk1"][4] == "0"
    (image,) = (host.data / "erofs").glob("*.erofs")
    data = image.read_bytes()
    data += bytes(-len(data) % 512)
    # A clone's guest believes the disk to be as large as the template's was.
    assert lines[-2] == f"{hashlib.sha256(data).hexdigest()}  -", "the disk is the image, and ends with it"
    assert lines[-1] == "0"


def test_no_service_of_the_host_s_loopback_answers(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"""
            gateway=$(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p')
            for address in 127.0.0.1 127.0.0.2 $gateway; do echo | nc -w 1 $address {port} && echo answered $address; done
            ip addr del 127.0.0.1/8 dev lo; ip link set lo down
            ip route add 127.0.0.0/8 via $gateway dev eth0; echo route $?
            for n in $(seq {port - 1} {port + 1}); do echo | nc -w 1 127.0.0.1 $n && echo answered $n; done
            ping -c 1 -W 2 $gateway >/dev/null && echo gateway
        """
        seen = inside(host, script, "PRIVILEGED")
        assert "gateway" in seen, "it has a network at all"
        assert "answered" not in seen
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


# ---- what the guest cannot change


@pytest.mark.parametrize("shared", [False, True])
def test_image_and_template_are_as_before_whatever_the_guest_writes(host: Host, tmp_path: Path, shared: bool) -> None:
    host("run", "--rm", IMAGE, "true")
    (image,) = (host.data / "erofs").glob("*.erofs")

    def seen(path: Path) -> tuple[int, int, int, str]:
        found, data, at = path.stat(), hashlib.sha256(), 0
        with path.open("rb") as file:
            while at < found.st_size:  # the guest's memory is mostly holes
                try:
                    file.seek(at, os.SEEK_DATA)
                except OSError:
                    break
                start = file.tell()
                at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                data.update(b"%d " % start + os.pread(file.fileno(), at - start, start))
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, data.hexdigest()

    with running(host, "--privileged", *(["-v", f"{tmp_path}:/vol"] if shared else [])):
        template = Path(machine_of(host, "one")["Template"])
        before = [seen(path) for path in (image, template / "ram", template / "state")]
        script = """
            disk=$(basename $(dirname $(grep -l disk0 /sys/block/*/serial))); numbers=$(cat /sys/block/$disk/dev)
            mknod /tmp/d b ${numbers%:*} ${numbers#*:}
            blockdev --setrw /tmp/d; echo 0 > /sys/block/$disk/ro
            dd if=/dev/urandom of=/tmp/d bs=4k count=16 conv=fsync; echo disk $?
            mount -t tmpfs -o size=90% t /mnt; dd if=/dev/urandom of=/mnt/seed bs=1M count=8
            for i in $(seq 25); do cat /mnt/seed >> /mnt/fill; done; sync; echo filled $(du -m /mnt/fill)
            rm -f /bin/busybox.extra; echo changed > /etc/passwd; sync
        """
        said = host.out("exec", "--privileged", "one", "sh", "-c", script)
        assert "disk 1" in said
        assert "filled 200" in said
        assert [seen(path) for path in (image, template / "ram", template / "state")] == before
    assert inside(host, "head -1 /etc/passwd").startswith("root:")
    assert [seen(path) for path in (image, template / "ram", template / "state")] == before


def test_two_clones_share_nothing_that_should_be_their_own(host: Host) -> None:
    script = """head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
        cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /sys/class/net/eth0/address; date +%s"""
    found, macs = [], []
    for name in ("one", "two"):
        with running(host, name=name):
            macs.append(json.loads(host.out("inspect", name))[0]["NetworkSettings"]["MacAddress"])
            *lines, date = host.out("exec", name, "sh", "-c", script).splitlines()
            assert abs(int(date) - time.time()) < 2
            found.append(lines)
            assert lines[3] == macs[-1]
            found[-1].append(host.out("exec", name, "cat", "/etc/hostname").strip())
    first, second = found
    assert len(first[0]) == 64
    for a, b in zip(first, second, strict=True):
        assert a != b


def holds(pid: int, wanted: bytes) -> bool:
    """Whether ``wanted`` is anywhere in the memory of a process that can be read."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            where, access = line.split()[:2]
            if "r" not in access or line.rstrip().endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = (int(word, 16) for word in where.split("-"))
            rest = b""
            for at in range(start, end, 8 << 20):
                with contextlib.suppress(OSError):
                    data = os.pread(memory.fileno(), min(8 << 20, end - at), at)
                    if wanted in rest + data:
                        return True
                    rest = data[-len(wanted) :]
    return False


def direct_map(host: Host, name: str) -> list[tuple[int, int]]:
    """(offset, size) in /proc/kcore of the guest's memory, by its ELF headers; [] where there is no such file."""
    raw = host(
        "exec", "--privileged", name, "sh", "-c", "head -c 8192 /proc/kcore | od -An -v -tx1", status=None
    ).stdout
    data = bytes.fromhex("".join(raw.split()))
    if data[:4] != b"\x7fELF":
        return []
    count = struct.unpack_from("<H", data, 56)[0]
    found = []
    for number in range(count):
        kind, _, offset, _, physical, size, _, _ = struct.unpack_from("<IIQQQQQQ", data, 64 + 56 * number)
        if kind == 1 and physical < 1 << 32 and size <= 1 << 30:
            found.append((offset, size))
    return found


SEARCH = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* The bytes wanted are given as their complements, so that our own memory does not have them. */
static char buffer[1 << 20];
int main(int argc, char **argv)
{
	unsigned char wanted[64], *at, *end;
	int n = strlen(argv[1]) / 2, fd = open("/proc/kcore", O_RDONLY);
	long found = 0;
	for (int i = 0; i < n; i++)
		sscanf(argv[1] + 2 * i, "%2hhx", wanted + i);
	for (int a = 2; a + 1 < argc; a += 2) {
		long from = atol(argv[a]), to = from + atol(argv[a + 1]);
		for (ssize_t got; from < to; from += got > 0 ? got : 4096) {
			got = pread(fd, buffer, to - from < (long)sizeof buffer ? to - from : (long)sizeof buffer, from);
			end = (unsigned char *)buffer + got - n;
			for (at = (unsigned char *)buffer; got > n && (at = memchr(at, 255 - wanted[0], end - at)); at++) {
				int i = 1;
				while (i < n && at[i] == 255 - wanted[i])
					i++;
				found += i == n;
			}
		}
	}
	printf("%ld\n", found);
}
"""


def search_program(directory: Path) -> str:
    """In base64: busybox would take a minute for it, in an emulated machine."""
    (directory / "search.c").write_text(SEARCH)
    subprocess.run(["cc", "-static", "-O2", "-o", directory / "search", directory / "search.c"], check=True)
    return base64.b64encode((directory / "search").read_bytes()).decode()


def test_a_clone_has_little_memory_of_its_own(executor: str, tmp_path: Path) -> None:
    """Alive, its agent has answered: what one more of them costs beside what all map (bench/machines.py has both)."""
    with idle_clone(os.environ["PYCONTAIN_VM_CONFIG"], str(tmp_path)) as (_, pid):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
        assert status(pid)["THP_enabled"] == "0"
        assert kib["AnonHugePages"] == 0
        # QEMU's own, its translations, and of 512 MiB of the guest's what it has written; a kernel that was read into
        # QEMU's memory would be 14 MiB more.
        assert 8 << 10 < kib["Anonymous"] < 28 << 10


def test_the_memory_of_one_is_not_in_the_other(host: Host, tmp_path: Path) -> None:
    """A page full of marks in one clone; every page of the other is searched, from within and from without."""
    with (
        running(host, "--privileged", "-m", "64m") as first,
        running(host, "--privileged", "-m", "64m", name="two") as second,
    ):
        fill = f"yes {MARK} | head -c 4000000 > /dev/shm/marks; sync"
        host("exec", "one", "sh", "-c", fill)
        marks = f"{MARK}\n{MARK}\n{MARK}".encode()
        assert holds(processes(host, first)["qemu"], marks), "the search finds what is there"
        assert not holds(processes(host, second)["qemu"], marks)
        for name, wanted in (("one", True), ("two", False)):
            places = direct_map(host, name)
            if places:  # a kernel of our own has neither /proc/kcore nor /dev/mem
                host(
                    "exec",
                    "-i",
                    name,
                    "sh",
                    "-c",
                    "base64 -d > /search; chmod 755 /search",
                    input=search_program(tmp_path),
                )
                words = [str(number) for place in places for number in place]
                found = host.out(
                    "exec", "--privileged", name, "/search", bytes(255 - b for b in MARK.encode()).hex(), *words
                )
                assert (found != "0\n") == wanted, name


# ---- files


def test_owners_modes_and_times_are_the_image_s(host: Host) -> None:
    script = (
        "find /* -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /etc/hosts -o -path /etc/hostname -o -path"
        " /etc/resolv.conf \\) -prune -o -print0 | xargs -0 stat -c '%N %f %u %g %s %t:%T %Y %h' | sort"
    )
    ours = inside(host, script, "--network", "none").splitlines()
    host.executor = "namespaces"
    wanted = inside(host, script, "--network", "none").splitlines()
    assert len(ours) > 100

    def same(line: str) -> list[str]:
        *fields, size, device, when, links = line.split()
        directory = int(fields[-3], 16) & 0o170000 == 0o040000
        return [*fields, *([] if directory else [size, links]), device, when]  # a directory's size is the file system's

    touched = ("/etc ", "'/etc' ")  # mount points are made there
    strip = [[same(line) for line in lines if not line.startswith(touched)] for lines in (ours, wanted)]
    assert strip[0] == strip[1]


def test_what_it_wrote_is_there_after_stop_and_start_and_goes_with_it(host: Host) -> None:
    with running(host):
        host(
            "exec",
            "one",
            "sh",
            "-c",
            "mkdir /kept && echo data > /kept/f && chmod 640 /kept/f && chown 12:34 /kept/f && rm /etc/group",
        )
        host("stop", "-t", "1", "one")
        host("start", "one")
        script = "cat /kept/f; stat -c '%a %u %g' /kept/f; [ -e /etc/group ] || echo removed"
        assert host.out("exec", "one", "sh", "-c", script).splitlines() == ["data", "640 12 34", "removed"]
        host("kill", "one")
        host("wait", "one")
        host("start", "one")
        assert host.out("exec", "one", "cat", "/kept/f") == "data\n"
    assert not list(host.data.glob("containers/*"))
    assert inside(host, "ls /kept 2>&1; [ -e /etc/group ] && echo there").splitlines()[-1] == "there"


# ---- the end


def taps(host: Host) -> list[str]:
    links = json.loads(subprocess.run(["ip", "-j", "-d", "link"], capture_output=True, check=True).stdout)
    return sorted(link["ifname"] for link in links if (link.get("linkinfo") or {}).get("info_kind") == "tun")


@pytest.mark.parametrize("victim", ["rm", "pycontain", "qemu", "virtiofsd", "supervisor"])
def test_whatever_is_killed_nothing_is_left(host: Host, victim: str, tmp_path: Path) -> None:
    before = taps(host)
    with running(host, "-v", f"{tmp_path}:/d") as identifier:
        found = processes(host, identifier)
        assert len(taps(host)) == len(before) + 1
        if victim == "supervisor":
            from pycontain.engine import teardown

            supervisor = teardown.processes(host.engine.containers.find("one"))
            assert supervisor is not None
            os.kill(supervisor.pid, signal.SIGKILL)
        elif victim == "virtiofsd":
            os.kill(found[victim], signal.SIGKILL)  # its files are gone for the guest, which goes on
        elif victim != "rm":
            os.kill(found[victim], signal.SIGKILL)
            assert host.out("wait", "one") == "137\n"
        host("rm", "-f", "one")
    end = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in found.values()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [name for name, pid in found.items() if os.path.exists(f"/proc/{pid}")]
    assert taps(host) == before
    assert not os.path.exists(f"{host.run_directory}/runtime/{identifier}")


# ---- refused by name


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--network", "host"), "--network host: a container in a machine shares nothing with this host"),
        (("--network", "container:x"), "--network container:x: a container in a machine shares nothing with this host"),
        (("--pid", "host"), "--pid host: a container in a machine shares nothing with this host"),
        (("--ipc", "host"), "--ipc host: a container in a machine shares nothing with this host"),
        (("--device", "/dev/null"), "--device: a container in a machine shares nothing with this host"),
    ],
)
def test_what_would_be_a_part_of_this_host_is_refused(host: Host, words: tuple[str, ...], error: str) -> None:
    for verb in ("run", "create"):
        assert host(verb, *words, IMAGE, status=125 if verb == "run" else 1).stderr.startswith(f"pycontain: {error}\n")


def test_nobody_joins_the_network_of_a_machine(host: Host) -> None:
    with running(host):
        host.executor = "namespaces"
        done = host("run", "--rm", "--network", "container:one", IMAGE, "true", status=125)
    assert done.stderr == (
        'pycontain: --network container:one: container "one" is in a machine of its own, which shares nothing\n'
        "\nhint: --network bridge\n"
    )


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("image") / "rootfs")


@pytest.mark.parametrize(
    ("words", "part", "error"),
    [
        (("--preserve-fds", "1"), {}, "--preserve-fds: a descriptor of the host does not get into a machine"),
        (
            (),
            {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/proc/1/ns/net"}]},
            "$.linux.namespaces[1].path: a machine's container joins no namespace of the host",
        ),
        (
            (),
            {"devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}]},
            "$.linux.devices[0]: '/dev/x': no device of the host is passed on to a machine",
        ),
    ],
)
def test_what_the_specification_asks_for_and_a_machine_has_not(
    executor: str, rootfs: Path, tmp_path: Path, words: tuple[str, ...], part: dict[str, Any], error: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"].update(part)
        config["annotations"] = {"org.pycontain.isolation": executor}

    runtime = Runtime(tmp_path / "state")
    with open(os.devnull) as third:
        os.dup2(third.fileno(), 30)
        bundle = write_bundle(tmp_path / "b", rootfs, "true", change=change)
        command = 'exec 3<&30; exec "$@"'
        from tests.runtime_tools import COMMAND

        argv = [*COMMAND, "--root", str(runtime.root), "run", *words, "-b", str(bundle), "t-refused"]
        done = subprocess.run(
            ["bash", "-c", command, "sh", *argv],
            pass_fds=[30],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        os.close(30)
    assert (done.returncode, done.stderr) == (1, f"pycontain-runtime: {error}\n")
    assert not runtime.root.exists() or os.listdir(runtime.root) == []


def test_ps_in_a_machine_takes_no_options_of_ps_and_update_is_refused(executor: str, rootfs: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["annotations"] = {"org.pycontain.isolation": executor}

    runtime = Runtime(tmp_path / "state")
    runtime("run", "-d", "-b", write_bundle(tmp_path / "b", rootfs, "sleep", "60", change=change), "t-ps", check=True)
    assert runtime("ps", "t-ps", "-o", "pid").stderr == (
        "pycontain-runtime: ps -o pid: the processes of a machine are listed without options of ps(1)\n"
    )
    assert runtime("update", "--memory", "64m", "t-ps").stderr == (
        "pycontain-runtime: cannot update container t-ps: it is in a machine, whose size is settled when it boots\n"
    )
    runtime("pause", "t-ps", check=True)
    assert runtime("ps", "t-ps").stderr == (
        "pycontain-runtime: cannot list the processes of container t-ps: it is paused, and its machine with it\n"
    )
    runtime.clean()
