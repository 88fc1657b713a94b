"""hosts, resolv.conf and host names: texts, and the rewriting of files that hostile containers own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.network import names
from pycontain.network.names import Member, ResolvConf
from pycontain.runtime.errors import PycontainError

BEGIN = "# pycontain: the members of this network; lines outside of this block are kept\n"
END = "# pycontain: end\n"
BASE = (
    "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
)


def member(tmp_path: pathlib.Path, name: str, address: str, *aliases: str) -> Member:
    path = tmp_path / f"hosts-{name}"
    if not path.exists():
        path.write_text(names.hosts_text())
    return Member(name * 8, name, address, str(path), aliases)


def test_hosts_text() -> None:
    assert names.hosts_text() == BASE
    assert names.hosts_text("web", "10.118.0.2", [("db", "10.0.0.9")]) == (
        BASE + "10.0.0.9\tdb\n10.118.0.2\tweb\n"
    )
    assert names.hosts_text("web") == BASE + "127.0.0.1\tweb\n"
    for bad in (("a\nb", "10.0.0.1"), ("a", "10.0.0.1\n6.6.6.6 host"), ("", "10.0.0.1"), ("a", "")):
        with pytest.raises(PycontainError):
            names.hosts_text(extra=[bad])


def test_all_members_learn_all_names_in_the_same_inode(tmp_path: pathlib.Path) -> None:
    web, db = member(tmp_path, "web", "10.118.0.2", "www", "web"), member(tmp_path, "db", "10.118.0.3")
    inodes = [os.stat(each.hosts_path).st_ino for each in (web, db)]
    assert names.refresh(str(tmp_path / "net"), [web, db]) == []
    block = f"{BEGIN}10.118.0.2\tweb www\n10.118.0.3\tdb\n{END}"
    for each in (web, db):
        assert pathlib.Path(each.hosts_path).read_text() == BASE + block
    # Renamed and removed: the file shrinks, and what stands around the block stays.
    path = pathlib.Path(web.hosts_path)
    path.write_text("1.1.1.1\tfirst\n" + path.read_text() + "2.2.2.2\tmine\n")
    assert names.refresh(str(tmp_path / "net"), [web._replace(name="front", aliases=())]) == []
    assert path.read_text() == f"1.1.1.1\tfirst\n{BASE}{BEGIN}10.118.0.2\tfront\n{END}2.2.2.2\tmine\n"
    assert [os.stat(each.hosts_path).st_ino for each in (web, db)] == inodes
    assert "db" in pathlib.Path(db.hosts_path).read_text()  # no member any more: left alone


def test_a_file_that_says_so_already_is_not_written(tmp_path: pathlib.Path) -> None:
    web = member(tmp_path, "web", "10.118.0.2")
    names.refresh(str(tmp_path / "net"), [web])
    os.utime(web.hosts_path, (1, 1))
    names.refresh(str(tmp_path / "net"), [web])
    assert os.stat(web.hosts_path).st_mtime == 1


def test_a_missing_newline_does_not_join_lines(tmp_path: pathlib.Path) -> None:
    web = member(tmp_path, "web", "10.118.0.2")
    pathlib.Path(web.hosts_path).write_text("1.2.3.4 x")
    names.refresh(str(tmp_path / "net"), [web])
    assert pathlib.Path(web.hosts_path).read_text() == f"1.2.3.4 x\n{BEGIN}10.118.0.2\tweb\n{END}"
    # A container that cut the end of the block off gets it whole again.
    pathlib.Path(web.hosts_path).write_text(f"1.2.3.4 x\n{BEGIN}junk")
    names.refresh(str(tmp_path / "net"), [web])
    assert pathlib.Path(web.hosts_path).read_text() == f"1.2.3.4 x\n{BEGIN}10.118.0.2\tweb\n{END}"


def test_one_spoilt_file_does_not_keep_the_names_from_others(tmp_path: pathlib.Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link, fifo, large, gone, good = (
        member(tmp_path, name, f"10.118.0.{number}")
        for number, name in enumerate(("link", "fifo", "large", "gone", "good"), 2)
    )
    for each in (link, fifo, gone):
        os.unlink(each.hosts_path)
    os.symlink(secret, link.hosts_path)
    os.mkfifo(fifo.hosts_path)
    with open(large.hosts_path, "w") as file:
        file.truncate(1 << 40)
    problems = names.refresh(str(tmp_path / "net"), [link, fifo, large, gone, good])
    assert problems == [
        f"write the names into {link.hosts_path} of container link: ELOOP (too many levels of symbolic links)",
        f"write the names into {fifo.hosts_path} of container fifo: it is not a regular file",
        f"write the names into {large.hosts_path} of container large: "
        "it has 1099511627776 bytes, wanted at most 1048576",
        f"write the names into {gone.hosts_path} of container gone: ENOENT (no such file or directory)",
    ]
    assert secret.read_text() == "secret"
    assert "\tgood\n" in pathlib.Path(good.hosts_path).read_text()


def test_a_lease_on_the_file_does_not_stall_the_host(tmp_path: pathlib.Path) -> None:
    """Root in the container owns its hosts file and may hold a lease on it: an open would wait for 45 seconds."""
    bad, good = member(tmp_path, "bad", "10.118.0.2"), member(tmp_path, "good", "10.118.0.3")
    script = (
        "import fcntl, os, signal, sys, time\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\nfcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)\n"
        "print('leased', flush=True)\ntime.sleep(100)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, bad.hosts_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "leased\n"
    try:
        assert names.refresh(str(tmp_path / "net"), [bad, good]) == [
            f"write the names into {bad.hosts_path} of container bad: EAGAIN (resource temporarily unavailable)"
        ]
    finally:
        holder.kill()
        holder.communicate()
    assert "\tgood\n" in pathlib.Path(good.hosts_path).read_text()


def test_refreshes_of_many_processes_leave_whole_files(tmp_path: pathlib.Path) -> None:
    script = (
        "import sys; from pycontain.network.names import Member, refresh; root = sys.argv[1]\n"
        "for turn in range(60):\n"
        "  count = (turn * 7 + int(sys.argv[2])) % 9 + 1\n"
        "  members = [Member(str(n), f'box{n}', f'10.118.0.{n + 2}', f'{root}/hosts-{n}') for n in range(count)]\n"
        "  assert refresh(root + '/net', members) == []\n"
    )
    for number in range(9):
        (tmp_path / f"hosts-{number}").write_text(BASE)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", script, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number)], env=environment) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    for number in range(9):
        text = (tmp_path / f"hosts-{number}").read_text()
        assert text.startswith(BASE + BEGIN) and text.endswith(END) and text.count(BEGIN) == 1
        for line in text.splitlines():
            assert line.startswith(("#", "127.", "::1", "fe00::", "ff02::", "10.118.0."))


@pytest.mark.parametrize("name", ["web", "web-1", "a.b.c", "A", "1", "x_y", "a" * 63])
def test_good_host_names(name: str) -> None:
    assert names.check_hostname(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the host name is empty"),
        ("a" * 65, f'host name "{"a" * 65}" has 65 bytes, wanted at most 64'),
        ("a\n10.0.0.1 evil", 'host name "a\\n10.0.0.1 evil" has the label "a\\n10"'),
        ("a..b", 'host name "a..b" has the label ""'),
        ("-a", 'host name "-a" has the label "-a"'),
        ("a-", 'host name "a-" has the label "a-"'),
        ("a b", 'host name "a b" has the label "a b"'),
        ("é", 'host name "é" has the label "é"'),
        ("a\0", 'host name "a\\x00" has the label "a\\x00"'),
    ],
)
def test_bad_host_names(name: str, message: str) -> None:
    if "label" in message:
        message += ", wanted 1 to 63 letters, digits, - and _, with no - at either end"
    with pytest.raises(PycontainError) as caught:
        names.check_hostname(name)
    assert caught.value.message == message


@given(st.text(max_size=70))
def test_no_name_brings_a_line_of_its_own(name: str) -> None:
    try:
        text = names.hosts_text(name, "10.0.0.1") if name else BASE + "x\n"
    except PycontainError:
        return
    assert text.count("\n") == 6 and text.isascii()


def test_add_host() -> None:
    assert names.parse_add_host("db:10.0.0.9") == ("db", "10.0.0.9")
    assert names.parse_add_host("db:fd00::9") == ("db", "fd00::9")
    for text, message in (
        ("db", 'add-host "db": "" is not an IP address'),
        ("db:x", 'add-host "db:x": "x" is not an IP address'),
        (":10.0.0.1", 'add-host ":10.0.0.1": the host name is empty'),
        ("db:1.2.3.4\n", 'add-host "db:1.2.3.4\\n": "1.2.3.4\\n" is not an IP address'),
    ):
        with pytest.raises(PycontainError) as caught:
            names.parse_add_host(text)
        assert caught.value.message == message and caught.value.hint == "--add-host name:address"


def test_resolv_conf_is_parsed_as_the_resolver_does() -> None:
    text = (
        "# comment\n; comment\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n"
        "domain old.example\nsearch a.example b.example bad$domain\noptions ndots:2 timeout:1 # x\nsortlist 1.2.3.4\n"
    )
    assert names.parse_resolv_conf(text) == ResolvConf(
        ("192.0.2.53", "fe80::1%eth0"), ("a.example", "b.example"), ("ndots:2", "timeout:1", "x")
    )
    assert names.parse_resolv_conf("") == ResolvConf()


def test_the_resolver_behind_the_stub_is_used(tmp_path: pathlib.Path) -> None:
    stub, behind = tmp_path / "resolv.conf", tmp_path / "resolved.conf"
    stub.write_text("nameserver 127.0.0.53\nsearch stub.example\noptions edns0\n")
    behind.write_text("nameserver 192.0.2.53\nnameserver ::1\nsearch behind.example\n")
    assert names.read_resolv_conf(str(stub), str(behind)) == ResolvConf(("192.0.2.53",), ("behind.example",))
    behind.unlink()
    assert names.read_resolv_conf(str(stub), str(behind)) == ResolvConf((), ("stub.example",), ("edns0",))
    stub.write_text("nameserver 127.0.0.1\nnameserver 192.0.2.7\n")
    assert names.read_resolv_conf(str(stub), str(behind)).nameservers == ("192.0.2.7",)
    assert names.read_resolv_conf(str(tmp_path / "none"), str(behind)) == ResolvConf()


def test_options_replace_the_host_s_lines_of_their_kind() -> None:
    host = ResolvConf(("192.0.2.53",), ("h.example",), ("edns0",))
    assert names.resolv_conf(host) == host
    found = names.resolv_conf(host, ["192.0.2.1", "fd00::1"], ["c.example"], ["ndots:5"])
    assert found.text() == "search c.example\nnameserver 192.0.2.1\nnameserver fd00::1\noptions ndots:5\n"
    assert names.resolv_conf(host, search=["."]).text() == "nameserver 192.0.2.53\noptions edns0\n"
    assert ResolvConf().text() == ""
    for arguments, message in (
        ({"dns": ["x"]}, 'dns server "x" is not an IP address'),
        ({"dns": ["192.0.2.1\nserver 6.6.6.6"]}, r'dns server "192.0.2.1\nserver 6.6.6.6" is not an IP address'),
        ({"search": ["a b"]}, 'dns search domain "a b" is not a domain name'),
        ({"options": ["a\nb"]}, r'dns option "a\nb" is not a word such as ndots:1'),
    ):
        with pytest.raises(PycontainError) as caught:
            names.resolv_conf(host, **arguments)  # type: ignore[arg-type]
        assert caught.value.message == message


def test_the_lock_file_is_private(tmp_path: pathlib.Path) -> None:
    names.refresh(str(tmp_path / "net"), [])
    assert os.stat(tmp_path / "net/names.lock").st_mode & 0o777 == 0o600
    assert os.stat(tmp_path / "net").st_mode & 0o777 == 0o700
