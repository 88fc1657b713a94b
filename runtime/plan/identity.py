"""What people write of a process, as numbers: users and groups, capabilities, resource limits, signals.

Pure: texts and bytes go in, numbers come out. The image's passwd and group files are hostile; what a
person wrote on a command line or in config.json is not, but a slip there must never end in uid 0.
"""

from __future__ import annotations

from pycontain.runtime import errors
from pycontain.runtime.plan.rights import CAPS, RLIM_INFINITY, RLIMITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypedDict

    class User(TypedDict):
        """OCI ``process.user`` plus the home directory; ids are those inside the container."""

        uid: int
        gid: int
        additionalGids: list[int]
        home: str

    class Rlimit(TypedDict):
        """OCI ``process.rlimits[]``; the unit is that of setrlimit(2)."""

        type: str
        soft: int
        hard: int


# signal(7), the numbers of <asm-generic/signal.h>. The C library keeps 32 and 33 for itself, so that
# what every program calls SIGRTMIN is 34.
SIGNALS: Final = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "ILL": 4,
    "TRAP": 5,
    "ABRT": 6,
    "IOT": 6,
    "BUS": 7,
    "FPE": 8,
    "KILL": 9,
    "USR1": 10,
    "SEGV": 11,
    "USR2": 12,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
    "STKFLT": 16,
    "CHLD": 17,
    "CLD": 17,
    "CONT": 18,
    "STOP": 19,
    "TSTP": 20,
    "TTIN": 21,
    "TTOU": 22,
    "URG": 23,
    "XCPU": 24,
    "XFSZ": 25,
    "VTALRM": 26,
    "PROF": 27,
    "WINCH": 28,
    "IO": 29,
    "POLL": 29,
    "PWR": 30,
    "SYS": 31,
    "RTMIN": 34,
    "RTMAX": 64,
}

# Ids above this are negative in a signed int and wrap to other users in more than one program (CVE-2024-40635).
ID_MAX: Final = 0x7FFFFFFF
FILE_MAX: Final = 1 << 20  # bytes of the image's passwd or group file that are read
GROUPS_MAX: Final = 65536  # NGROUPS_MAX of setgroups(2)


def parse_cap(text: str) -> str:
    """``CAP_NET_ADMIN`` for ``net_admin``, ``NET_ADMIN`` or ``cap_net_admin``, as people write after --cap-add.

    ``ALL`` stays ``ALL``. PycontainError: no such capability.
    """
    name = text.upper()
    if name == "ALL":
        return name
    if not name.startswith("CAP_"):
        name = "CAP_" + name
    if name not in CAPS or not text.isascii():
        raise errors.PycontainError(
            f"capability {text!r} is not known: wanted ALL or a name of capabilities(7) such as NET_ADMIN",
            hint="man 7 capabilities",
        )
    return name


def parse_signal(text: str) -> int:
    """The number (1 to 64) of ``SIGTERM``, ``term``, ``15``, ``RTMIN+1`` or ``SIGRTMAX-3``.

    PycontainError: no such signal.
    """
    name = text.upper()
    if text.isascii():
        if name.isdigit() and len(name) <= 3:
            number = int(name)
            if 1 <= number <= 64:
                return number
        name = name.removeprefix("SIG")
        known = SIGNALS.get(name)
        if known is not None:
            return known
        base, sign, offset = name[:5], name[5:6], name[6:]
        if offset.isdigit() and len(offset) <= 2:
            if base == "RTMIN" and sign == "+" and int(offset) <= 30:
                return 34 + int(offset)
            if base == "RTMAX" and sign == "-" and int(offset) <= 30:
                return 64 - int(offset)
    raise errors.PycontainError(
        f"signal {text!r} is not known: wanted a name such as TERM, SIGTERM or RTMIN+1, or a number from 1 to 64"
    )


def parse_ulimit(text: str) -> Rlimit:
    """One ``--ulimit`` value, ``name=soft[:hard]``, as an OCI rlimit; -1 or ``unlimited`` is RLIM_INFINITY.

    PycontainError: unknown name, not a number, or a soft limit above the hard one.
    """
    name, equals, limits = text.partition("=")
    kind = "RLIMIT_" + name.upper()
    if not equals or not limits:
        raise errors.PycontainError(f"ulimit {text!r} is not name=soft[:hard], such as nofile=1024:4096")
    if kind not in RLIMITS or not name.islower():
        known = " ".join(sorted(rlimit[7:].lower() for rlimit in RLIMITS))
        raise errors.PycontainError(f"ulimit {name!r} is not known: wanted one of {known}")
    first, colon, second = limits.partition(":")
    soft = _limit(text, first)
    hard = _limit(text, second) if colon else soft
    if soft > hard:
        raise errors.PycontainError(f"ulimit {text!r} has a soft limit above its hard limit")
    return {"type": kind, "soft": soft, "hard": hard}


def parse_user(text: str, passwd: bytes | None, group: bytes | None) -> User:
    """``uid[:gid]``, ``name[:group]`` or a mixture, as in an image's ``User`` or after ``--user``; empty means uid 0.

    ``passwd`` and ``group`` are the bytes of the image's files, None where it has none. Digits are always
    an id and never looked up as a name. The group that is not given is the one of the user's passwd line,
    or 0. ``additionalGids`` begins with the primary group, so that a set-group-id program cannot shed it,
    then come the groups that list the user, in the file's order; a group given explicitly stands alone.
    The first line that matches counts; a malformed line matches nothing. ``home`` is ``/`` if none is known.

    NotFound: a name that the image does not know. PycontainError: malformed, out of range, or a file above FILE_MAX.
    """
    user_text, colon, group_text = text.partition(":")
    if (text and not user_text) or (colon and not group_text) or ":" in group_text:
        raise errors.PycontainError(f"user {text!r} is not user[:group], such as 1000:1000 or nobody")
    wanted_uid = _id("user", user_text) if user_text else 0
    name, uid, gid, home = _passwd_entry(user_text, wanted_uid, _lines("passwd", passwd))
    if not colon:
        additional = _groups_of(name, gid, _lines("group", group))
        return {"uid": uid, "gid": gid, "additionalGids": additional, "home": home}
    wanted_gid = _id("group", group_text)
    if wanted_gid is None:
        wanted_gid = _group_id(group_text, _lines("group", group))
    return {"uid": uid, "gid": wanted_gid, "additionalGids": [wanted_gid], "home": home}


def parse_group(text: str, group: bytes | None) -> int:
    """The gid of a group name or number, as after ``--group-add``. Errors as parse_user's."""
    number = _id("group", text)
    return _group_id(text, _lines("group", group)) if number is None else number


def _passwd_entry(user: str, uid: int | None, lines: list[bytes]) -> tuple[bytes, int, int, str]:
    """passwd(5): name:password:uid:gid:comment:home:shell. Returns (name, uid, gid, home)."""
    name = user.encode()
    for line in lines:
        fields = line.split(b":")
        if not 4 <= len(fields) <= 7 or not fields[0]:
            continue
        entry_uid, entry_gid = _file_id(fields[2]), _file_id(fields[3])
        if entry_uid is None or entry_gid is None:
            continue
        if (entry_uid == uid) if uid is not None else (fields[0] == name):
            home = fields[5] if len(fields) > 5 else b"/"
            absolute = home.startswith(b"/") and b"\0" not in home
            return fields[0], entry_uid, entry_gid, home.decode("utf-8", "surrogateescape") if absolute else "/"
    if uid is None:
        raise errors.NotFound(
            f"user {user!r} is not in the image's /etc/passwd", hint="give a number instead, such as --user 1000:1000"
        )
    return b"", uid, 0, "/"


def _groups_of(name: bytes, gid: int, lines: list[bytes]) -> list[int]:
    found = {gid: None}
    if name:
        for line in lines:
            fields = line.split(b":")
            if len(fields) == 4 and fields[0] and name in fields[3].split(b","):
                number = _file_id(fields[2])
                if number is not None:
                    found[number] = None
    if len(found) > GROUPS_MAX:
        raise errors.PycontainError(
            f"the image's /etc/group puts one user into {len(found)} groups, the kernel takes {GROUPS_MAX}"
        )
    return list(found)


def _group_id(group: str, lines: list[bytes]) -> int:
    """group(5): name:password:gid:member,member."""
    name = group.encode()
    for line in lines:
        fields = line.split(b":")
        if 3 <= len(fields) <= 4 and fields[0] == name:
            number = _file_id(fields[2])
            if number is not None:
                return number
    raise errors.NotFound(
        f"group {group!r} is not in the image's /etc/group", hint="give a number instead, such as 1000"
    )


def _lines(name: str, data: bytes | None) -> list[bytes]:
    if data is None:
        return []
    if len(data) > FILE_MAX:
        raise errors.PycontainError(f"the image's /etc/{name} is larger than {FILE_MAX} bytes")
    return data.split(b"\n")


def _id(what: str, text: str) -> int | None:
    """The number if the text is one, None for a name; a number in any other dress is refused, not guessed."""
    if text.isascii() and text.isdigit():
        digits = text.lstrip("0") or "0"
        number = int(digits) if len(digits) <= 10 else ID_MAX + 1
        if number > ID_MAX:
            raise errors.PycontainError(f"{what} {text[:40]} is out of range: wanted 0 to {ID_MAX}")
        return number
    # A surrogate is a byte of the command line that is not UTF-8; it cannot be encoded and is no name.
    printable = text.isprintable() and not any(0xD800 <= ord(letter) < 0xE000 for letter in text)
    if not text or text[0] in "+-~" or not printable or " " in text or "," in text or "/" in text:
        raise errors.PycontainError(f"{what} {text!r} is neither a number nor a name")
    return None


def _file_id(field: bytes) -> int | None:
    if not field.isdigit() or len(field) > 10:
        return None
    number = int(field)
    return number if number <= ID_MAX else None


def _limit(text: str, limit: str) -> int:
    if limit in ("-1", "unlimited"):
        return RLIM_INFINITY
    if limit.isascii() and limit.isdigit() and len(limit) <= 20 and int(limit) <= RLIM_INFINITY:
        return int(limit)
    raise errors.PycontainError(f"ulimit {text!r} has {limit!r} where a number, -1 or unlimited is wanted")
