"""Names and numbers of capabilities, limits, signals, users and groups."""

from __future__ import annotations

import re
import signal
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime.errors import NotFound, PycontainError, SpecError
from pycontain.runtime.plan import identity
from pycontain.runtime.plan.identity import parse_cap, parse_group, parse_signal, parse_ulimit, parse_user
from pycontain.runtime.plan.rights import CAPS, DEFAULT_CAPS, RLIM_INFINITY, RLIMITS, caps_mask

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
bin:x:1:1:bin:/bin:/sbin/nologin
daemon:x:2:2:daemon:/sbin:/sbin/nologin
app:x:1000:1001:An App:/srv/app:/bin/sh
nobody:x:65534:65534:nobody:/:/sbin/nologin
"""
GROUP = b"""root:x:0:root
bin:x:1:root,bin,daemon
daemon:x:2:root,bin,daemon
wheel:x:10:root,app
app:x:1001:
audio:x:18:app
nogroup:x:65533:
nobody:x:65534:
"""


ULIMITS = "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"

# capabilities


def test_capabilities_are_the_kernels() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        assert len(CAPS) == 41 and sorted(CAPS.values()) == list(range(41))
        return
    known = dict(re.findall(r"#define (CAP_[A-Z_]+)\s+(\d+)$", header.read_text(), re.MULTILINE))
    assert {name: str(number) for name, number in CAPS.items()} == known


def test_default_capabilities_are_the_14_of_the_field() -> None:
    assert len(DEFAULT_CAPS) == 14
    assert caps_mask(list(DEFAULT_CAPS), "$") == 0xA80425FB


def test_caps_mask() -> None:
    assert caps_mask([], "$") == 0
    assert caps_mask(["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE", "CAP_CHOWN"], "$") == 1 | 1 << 40


def test_what_cannot_be_granted_is_a_warning() -> None:
    warnings: list[str] = []
    mask = caps_mask(["CAP_KILL", "CAP_FLY", "cap_chown", "CAP_BPF"], "$.process.capabilities.bounding", (1 << 38) - 1, warnings)
    assert mask == 1 << 5
    assert warnings == [
        "$.process.capabilities.bounding[1]: CAP_FLY is not a capability, ignored",
        "$.process.capabilities.bounding[2]: cap_chown is not a capability, ignored",
        "$.process.capabilities.bounding[3]: CAP_BPF is not in the bounding set here and cannot be granted, ignored",
    ]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (None, "$.c: is null, wanted an array of capability names"),
        ("CAP_KILL", "$.c: is a string, wanted an array of capability names"),
        ({}, "$.c: is an object, wanted an array of capability names"),
        (["CAP_KILL", 5], "$.c[1]: is a number, wanted a capability name such as CAP_KILL"),
        ([True], "$.c[0]: is a boolean, wanted a capability name such as CAP_KILL"),
    ],
)
def test_caps_mask_refuses(names: list[str], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        caps_mask(names, "$.c")
    assert str(caught.value) == text


@pytest.mark.parametrize("text", ["net_admin", "NET_ADMIN", "cap_net_admin", "CAP_NET_ADMIN"])
def test_parse_cap(text: str) -> None:
    assert parse_cap(text) == "CAP_NET_ADMIN"


def test_parse_cap_refuses() -> None:
    assert parse_cap("all") == "ALL"
    for text in ("", "FLY", "CAP_", "CAP_ALL", "ıpc_lock"):
        with pytest.raises(PycontainError) as caught:
            parse_cap(text)
        assert str(caught.value) == (
            f"capability {text!r} is not known: wanted ALL or a name of capabilities(7) such as NET_ADMIN"
        )
        assert caught.value.hint == "man 7 capabilities"


# signals


def test_signals_are_pythons() -> None:
    for member in signal.Signals:
        assert parse_signal(member.name) == member
        assert parse_signal(member.name.lower()[3:]) == member


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("15", 15),
        ("1", 1),
        ("64", 64),
        ("032", 32),
        ("RTMIN+1", 35),
        ("sigrtmin+30", 64),
        ("RTMAX-3", 61),
        ("RTMIN", 34),
    ],
)
def test_parse_signal(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "0", "65", "-9", "+9", "SIG", "SIGSIGTERM", "FOO", "TERM ", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMAX-31",
     "9\n", "RTMIN+", "RTMIN+-1", "1_5", "١٥", "ſigterm", "1e1", "0x9"],
)  # fmt: skip
def test_parse_signal_refuses(text: str) -> None:
    with pytest.raises(PycontainError) as caught:
        parse_signal(text)
    assert str(caught.value) == (
        f"signal {text!r} is not known: wanted a name such as TERM, SIGTERM or RTMIN+1, or a number from 1 to 64"
    )


@given(st.text(max_size=12))
def test_parse_signal_answers_or_refuses(text: str) -> None:
    try:
        assert 1 <= parse_signal(text) <= 64
    except PycontainError:
        pass


# resource limits


def test_rlimits_are_the_kernels() -> None:
    import resource

    assert len(RLIMITS) == 16
    for name in ("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS"):
        assert RLIMITS[f"RLIMIT_{name}"] == getattr(resource, f"RLIMIT_{name}")


@pytest.mark.parametrize(
    ("text", "kind", "soft", "hard"),
    [
        ("nofile=1024:4096", "RLIMIT_NOFILE", 1024, 4096),
        ("nproc=20", "RLIMIT_NPROC", 20, 20),
        ("core=0:-1", "RLIMIT_CORE", 0, RLIM_INFINITY),
        ("memlock=unlimited", "RLIMIT_MEMLOCK", RLIM_INFINITY, RLIM_INFINITY),
    ],
)
def test_parse_ulimit(text: str, kind: str, soft: int, hard: int) -> None:
    assert parse_ulimit(text) == {"type": kind, "soft": soft, "hard": hard}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nofile", "ulimit 'nofile' is not name=soft[:hard], such as nofile=1024:4096"),
        ("nofile=", "ulimit 'nofile=' is not name=soft[:hard], such as nofile=1024:4096"),
        ("nofile=1:", "ulimit 'nofile=1:' has '' where a number, -1 or unlimited is wanted"),
        ("nofile=1:2:3", "ulimit 'nofile=1:2:3' has '2:3' where a number, -1 or unlimited is wanted"),
        ("nofile=1k", "ulimit 'nofile=1k' has '1k' where a number, -1 or unlimited is wanted"),
        ("nofile=-2", "ulimit 'nofile=-2' has '-2' where a number, -1 or unlimited is wanted"),
        (
            "nofile=18446744073709551616",
            "ulimit 'nofile=18446744073709551616' has '18446744073709551616' where a number, -1 or unlimited is wanted",
        ),
        ("nofile=2:1", "ulimit 'nofile=2:1' has a soft limit above its hard limit"),
        ("nofile=-1:1", "ulimit 'nofile=-1:1' has a soft limit above its hard limit"),
        (
            "files=1",
            f"ulimit 'files' is not known: wanted one of {ULIMITS}",
        ),
        (
            "NOFILE=1",
            f"ulimit 'NOFILE' is not known: wanted one of {ULIMITS}",
        ),
    ],
)
def test_parse_ulimit_refuses(text: str, message: str) -> None:
    with pytest.raises(PycontainError) as caught:
        parse_ulimit(text)
    assert str(caught.value) == message


# users


@pytest.mark.parametrize(
    ("text", "uid", "gid", "additional", "home"),
    [
        ("", 0, 0, [0, 1, 2, 10], "/root"),
        ("0", 0, 0, [0, 1, 2, 10], "/root"),
        ("root", 0, 0, [0, 1, 2, 10], "/root"),
        ("app", 1000, 1001, [1001, 10, 18], "/srv/app"),
        ("1000", 1000, 1001, [1001, 10, 18], "/srv/app"),
        ("app:app", 1000, 1001, [1001], "/srv/app"),
        ("app:audio", 1000, 18, [18], "/srv/app"),
        ("app:0", 1000, 0, [0], "/srv/app"),
        ("1000:1000", 1000, 1000, [1000], "/srv/app"),
        ("4242", 4242, 0, [0], "/"),
        ("4242:4243", 4242, 4243, [4243], "/"),
        ("4242:wheel", 4242, 10, [10], "/"),
        ("007:010", 7, 10, [10], "/"),
        ("1", 1, 1, [1, 2], "/bin"),
        ("2147483647:2147483647", 2147483647, 2147483647, [2147483647], "/"),
    ],
)
def test_parse_user(text: str, uid: int, gid: int, additional: list[int], home: str) -> None:
    assert parse_user(text, PASSWD, GROUP) == {"uid": uid, "gid": gid, "additionalGids": additional, "home": home}


def test_parse_user_without_files() -> None:
    assert parse_user("", None, None) == {"uid": 0, "gid": 0, "additionalGids": [0], "home": "/"}
    assert parse_user("1:2", None, None) == {"uid": 1, "gid": 2, "additionalGids": [2], "home": "/"}


@pytest.mark.parametrize("text", [":", ":1", "1:", "app:", "1:2:3", "1::2", "::"])
def test_shape_of_a_user(text: str) -> None:
    with pytest.raises(PycontainError) as caught:
        parse_user(text, PASSWD, GROUP)
    assert str(caught.value) == f"user {text!r} is not user[:group], such as 1000:1000 or nobody"


@pytest.mark.parametrize(
    "text",
    ["-1", "+1", " 1", "1 ", "root\n", "a\0b", "\udc80", "\t", "~root", "a,b", "../x", "\x7f", "\u2028"],
)
def test_neither_a_number_nor_a_name(text: str) -> None:
    with pytest.raises(PycontainError) as caught:
        parse_user(text, PASSWD, GROUP)
    assert str(caught.value) == f"user {text!r} is neither a number nor a name"
    with pytest.raises(PycontainError) as caught:
        parse_user("1:" + text, PASSWD, GROUP)
    assert str(caught.value) == f"group {text!r} is neither a number nor a name"


@pytest.mark.parametrize("text", ["1_0", "0x0", "0b0", "1e0", "1.0", "²", "٠", "zero", "ROOT", "roo"])
def test_unknown_names_never_become_root(text: str) -> None:
    with pytest.raises(NotFound) as caught:
        parse_user(text, PASSWD, GROUP)
    assert str(caught.value) == f"user {text!r} is not in the image's /etc/passwd"
    assert caught.value.hint == "give a number instead, such as --user 1000:1000"
    with pytest.raises(NotFound) as caught:
        parse_user("0:" + text, PASSWD, GROUP)
    assert str(caught.value) == f"group {text!r} is not in the image's /etc/group"


@pytest.mark.parametrize("number", [2147483648, 4294967295, 4294967296, 1 << 64, 10**400])
def test_ids_do_not_wrap(number: int) -> None:
    """CVE-2024-40635: an id above 2^31-1 became root."""
    shown = str(number)[:40]
    with pytest.raises(PycontainError) as caught:
        parse_user(str(number), None, None)
    assert str(caught.value) == f"user {shown} is out of range: wanted 0 to 2147483647"
    with pytest.raises(PycontainError) as caught:
        parse_user(f"1:{number}", None, None)
    assert str(caught.value) == f"group {shown} is out of range: wanted 0 to 2147483647"


def test_digits_are_a_uid() -> None:
    """CVE-2016-3697: an image names a user 1000 and gives it uid 0."""
    hostile = b"1000:x:0:0:evil:/root:/bin/sh\n"
    assert parse_user("1000", hostile, b"1000:x:0:1000\n") == {
        "uid": 1000, "gid": 0, "additionalGids": [0], "home": "/",
    }  # fmt: skip
    assert parse_user("1000:1000", hostile, b"1000:x:0:\n")["gid"] == 1000


@pytest.mark.parametrize(
    "line",
    [
        b"eve", b"eve:x", b"eve:x::", b"eve:x:0", b"eve:x:zero:0:::", b"eve:x:-1:0:::", b"eve:x:+0:0:::",
        b"eve:x:0x0:0:::", b"eve:x: 0:0:::", b"eve:x:2147483648:0:::", b"eve:x:99999999999999999999:0:::",
        b"eve:x:0:4294967296:::", b"eve:x:0:0::::::", b":x:0:0:::", b"eve:x:\xc2\xb2:0:::", b"\0eve:x:0:0:::",
    ],
)  # fmt: skip
def test_malformed_lines_match_nothing(line: bytes) -> None:
    with pytest.raises(NotFound):
        parse_user("eve", line, None)
    good = b"eve:x:7:8::/home/eve:/bin/sh\n"
    assert parse_user("eve", line + b"\n" + good, None)["uid"] == 7


def test_short_lines_that_images_do_have() -> None:
    assert parse_user("app", b"app:x:5:6", None) == {"uid": 5, "gid": 6, "additionalGids": [6], "home": "/"}


@pytest.mark.parametrize("home", [b"", b"relative", b"/a\0b"])
def test_a_home_that_is_none(home: bytes) -> None:
    assert parse_user("a", b"a:x:1:1::" + home + b":/bin/sh", None)["home"] == "/"


def test_the_first_line_counts() -> None:
    assert parse_user("a", b"a:x:1:1:::\na:x:0:0:::\n", None)["uid"] == 1
    assert parse_user("1:g", None, b"g:x:3:\ng:x:0:\n")["gid"] == 3


def test_groups_are_exact() -> None:
    """CVE-2022-36109 and 2023-25173: no prefix, suffix, padding or case counts as the user."""
    group = b"a:x:10:ap,app1,xapp, app,APP\nb:x:11:app\nc:x:12:x,app\nb2:x:11:app\n"
    group += b"bad:x:zz:app\nshort:x:13\nlong:x:14:app:\n"
    assert parse_user("app", PASSWD, group)["additionalGids"] == [1001, 11, 12]


def test_bounded_files() -> None:
    huge = b"x:x:1:1:::\n" * (identity.FILE_MAX // 10)
    with pytest.raises(PycontainError) as caught:
        parse_user("0", huge, None)
    assert str(caught.value) == "the image's /etc/passwd is larger than 1048576 bytes"
    with pytest.raises(PycontainError) as caught:
        parse_user("0", PASSWD, huge)
    assert str(caught.value) == "the image's /etc/group is larger than 1048576 bytes"


def test_bounded_groups() -> None:
    lines = b"".join(b"g::%d:u\n" % number for number in range(70000))
    with pytest.raises(PycontainError) as caught:
        parse_user("u", b"u::1:1", lines)
    assert str(caught.value) == "the image's /etc/group puts one user into 70000 groups, the kernel takes 65536"


def test_parse_group() -> None:
    assert parse_group("wheel", GROUP) == 10
    assert parse_group("77", None) == 77
    with pytest.raises(NotFound):
        parse_group("wheel", None)


@given(st.text(alphabet=st.characters(codec=None), max_size=20), st.binary(max_size=200), st.binary(max_size=200))
def test_any_user_text_is_exact_or_refused(text: str, passwd: bytes, group: bytes) -> None:
    try:
        user = parse_user(text, passwd, group)
    except PycontainError as error:
        assert "\n" not in str(error) and "\0" not in str(error)
        return
    user_text, _, group_text = text.partition(":")
    for part, number in ((user_text, user["uid"]), (group_text, user["gid"])):
        if part and set(part) <= set(string.digits):
            assert number == int(part)
    if not set(user_text) <= set(string.digits):
        assert user_text.encode() in [line.split(b":")[0] for line in passwd.split(b"\n")]
    assert user["additionalGids"][0] == user["gid"]
    assert all(0 <= number <= identity.ID_MAX for number in [user["uid"], *user["additionalGids"]])
    assert user["home"].startswith("/") and "\n" not in user["home"] and ":" not in user["home"]


_name = st.text(alphabet=string.ascii_lowercase, min_size=1, max_size=3)
_ids = st.integers(0, 5)


@given(
    st.lists(st.tuples(_name, _ids, _ids), max_size=6),
    st.lists(st.tuples(_name, _ids, st.lists(_name, max_size=4)), max_size=6),
    st.one_of(_name, _ids.map(str)),
)
def test_well_formed_files_by_a_plain_model(
    users: list[tuple[str, int, int]], groups: list[tuple[str, int, list[str]]], wanted: str
) -> None:
    passwd = "".join(f"{name}:x:{uid}:{gid}:::\n" for name, uid, gid in users).encode()
    group = "".join(f"{name}:x:{gid}:{','.join(members)}\n" for name, gid, members in groups).encode()
    match = [user for user in users if (str(user[1]) if wanted.isdigit() else user[0]) == wanted]
    if not match and not wanted.isdigit():
        with pytest.raises(NotFound):
            parse_user(wanted, passwd, group)
        return
    name, uid, gid = match[0] if match else (None, int(wanted), 0)
    expected = {gid} | {number for _, number, members in groups if name in members}
    user = parse_user(wanted, passwd, group)
    assert (user["uid"], user["gid"]) == (uid, gid)
    assert user["additionalGids"][0] == gid
    assert sorted(user["additionalGids"]) == sorted(expected)
