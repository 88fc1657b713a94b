"""Names: /etc/hosts, /etc/resolv.conf and the host name of containers, and how members of a network find each other.

The files live in each container's own directory on the host and are bind-mounted into it. A bind mount is of an inode,
so the files are rewritten in place and never renamed over. What is inside them is the container's to write: it is
copied, never interpreted, and never trusted to be small.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat

from pycontain.network.state import locked, private_directory
from pycontain.runtime.errors import PycontainError, errno_text
from pycontain.runtime.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESOLV_CONF = "/etc/resolv.conf"
# Where systemd-resolved keeps the servers behind the stub on 127.0.0.53 that it puts into /etc/resolv.conf.
RESOLVED_CONF = "/run/systemd/resolve/resolv.conf"

_BEGIN = "# pycontain: the members of this network; lines outside of this block are kept\n"
_END = "# pycontain: end\n"
_HOSTS_LIMIT = 1 << 20
_RESOLV_LIMIT = 1 << 16
_HOSTNAME_LIMIT = 64  # __NEW_UTS_LEN of linux/utsname.h, what sethostname(2) takes


class Member(NamedTuple):
    """A container on a network: ``hosts_path`` is its hosts file on the host; ``aliases`` go with ``name``."""

    id: str
    name: str
    address: str
    hosts_path: str
    aliases: tuple[str, ...] = ()


class ResolvConf(NamedTuple):
    """What a resolv.conf says: nameserver addresses, search domains, options (resolv.conf(5))."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def text(self) -> str:
        """The file's text, without comments."""
        lines = []
        if self.search:
            lines.append(f"search {' '.join(self.search)}")
        lines += [f"nameserver {address}" for address in self.nameservers]
        if self.options:
            lines.append(f"options {' '.join(self.options)}")
        return "".join(f"{line}\n" for line in lines)


def check_hostname(name: str) -> str:
    """``name`` if it may be a host name, else PycontainError: labels of letters, digits, - and _, joined by dots.

    Underscores are against RFC 1123 and in use. 64 bytes is the kernel's limit, 63 that of a label (RFC 1035).
    """
    if not name:
        raise PycontainError("the host name is empty")
    if len(name.encode()) > _HOSTNAME_LIMIT:
        raise PycontainError(f'host name "{_shown(name)}" has {len(name.encode())} bytes, wanted at most 64')
    for label in name.split("."):
        plain = label.isascii() and label.replace("-", "a").replace("_", "a").isalnum()
        if not plain or len(label) > 63 or "-" in (label[0], label[-1]):
            raise PycontainError(
                f'host name "{_shown(name)}" has the label "{_shown(label)}", '
                "wanted 1 to 63 letters, digits, - and _, with no - at either end"
            )
    return name


def parse_add_host(text: str) -> tuple[str, str]:
    """``name:address`` of ``--add-host`` as (name, address); PycontainError when either is not one."""
    name, _, address = text.partition(":")
    try:
        check_hostname(name)
    except PycontainError as error:
        raise PycontainError(f'add-host "{_shown(text)}": {error.message}', hint="--add-host name:address") from None
    if not _is_address(address):
        raise PycontainError(
            f'add-host "{_shown(text)}": "{_shown(address)}" is not an IP address', hint="--add-host name:address"
        )
    return name, address


def hosts_text(hostname: str = "", address: str = "", extra: Sequence[tuple[str, str]] = ()) -> str:
    """The first text of a container's hosts file; ``extra`` is (name, address) of ``--add-host``.

    ``address`` "" leaves the container's own name on 127.0.0.1 (no network). Members of a network are put in by
    ``refresh``, which has the container's own line too: give no ``hostname`` then, or one that is not its name.
    """
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += ["fe00::\tip6-localnet", "ff02::1\tip6-allnodes", "ff02::2\tip6-allrouters"]
    lines += [f"{where}\t{check_hostname(name)}" for name, where in extra if _checked_address(where)]
    if hostname:
        lines.append(f"{_checked_address(address or '127.0.0.1')}\t{check_hostname(hostname)}")
    return "".join(f"{line}\n" for line in lines)


def refresh(network_root: str, members: Sequence[Member]) -> list[str]:
    """Write the names of all ``members`` into the hosts file of each, in place; what could not be written, in words.

    ``network_root`` is the network's directory, whose ``names.lock`` is held meanwhile. A file that already says so is
    left alone. A container can spoil its own file (make it immutable, enormous or leased): then the others' are still
    written, and the returned list names it.
    """
    block = _block(members)
    problems = []
    private_directory(network_root)
    lock = locked(f"{network_root}/names.lock")
    try:
        for member in members:
            try:
                problem = _rewrite(member.hosts_path, block)
            except OSError as error:
                problem = errno_text(error.errno or errno.EIO)
            if problem:
                problems.append(f"write the names into {member.hosts_path} of container {member.name}: {problem}")
    finally:
        os.close(lock)
    return problems


def read_resolv_conf(path: str = RESOLV_CONF, resolved_path: str = RESOLVED_CONF) -> ResolvConf:
    """The host's resolv.conf as a container can use it.

    Nameservers on loopback addresses are the host's own and are dropped; where none is left, those that
    systemd-resolved asks are taken. There may be none.
    """
    found = _reachable(parse_resolv_conf(_read_limited(path)))
    if not found.nameservers:
        behind = _reachable(parse_resolv_conf(_read_limited(resolved_path)))
        if behind.nameservers:
            return behind
    return found


def parse_resolv_conf(text: str) -> ResolvConf:
    """The parts of a resolv.conf that resolv.conf(5) names; the last ``search`` or ``domain`` wins."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        if words[0] == "nameserver" and len(words) > 1 and _is_address(words[1].partition("%")[0]):
            nameservers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = tuple(word for word in words[1:] if _is_domain(word))
        elif words[0] == "options":
            options += [word for word in words[1:] if word[0] not in "#;"]
    return ResolvConf(tuple(nameservers), search, tuple(options))


def resolv_conf(
    host: ResolvConf, dns: Iterable[str] = (), search: Iterable[str] = (), options: Iterable[str] = ()
) -> ResolvConf:
    """The container's: each of ``--dns``, ``--dns-search`` and ``--dns-option`` replaces the host's lines of its kind.

    ``--dns-search .`` means none. PycontainError for an address, a domain or an option that is not one.
    """
    servers, domains, words = tuple(dns), tuple(search), tuple(options)
    for server in servers:
        if not _is_address(server):
            raise PycontainError(f'dns server "{_shown(server)}" is not an IP address', hint="--dns 192.0.2.53")
    for domain in domains:
        if domain != "." and not _is_domain(domain):
            raise PycontainError(f'dns search domain "{_shown(domain)}" is not a domain name')
    for word in words:
        if not word.isascii() or not word.replace("-", "a").replace(":", "a").replace("_", "a").isalnum():
            raise PycontainError(f'dns option "{_shown(word)}" is not a word such as ndots:1')
    if domains:
        domains = tuple(domain for domain in domains if domain != ".")
    else:
        domains = host.search
    return ResolvConf(servers or host.nameservers, domains, words or host.options)


def _block(members: Sequence[Member]) -> str:
    lines = []
    for member in members:
        names = [check_hostname(name) for name in (member.name, *member.aliases)]
        lines.append(f"{_checked_address(member.address)}\t{' '.join(dict.fromkeys(names))}\n")
    return f"{_BEGIN}{''.join(lines)}{_END}"


def _rewrite(path: str, block: str) -> str | None:
    """Put the block into a hosts file in place; a problem in words, or None. Raises OSError.

    O_NONBLOCK: root in the container owns the file and can hold a lease on it (fcntl(2), F_SETLEASE), for which a
    blocking open would wait 45 seconds. O_NOFOLLOW and the check of the type: only a regular file is written.
    """
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if status.st_size > _HOSTS_LIMIT:
            return f"it has {status.st_size} bytes, wanted at most {_HOSTS_LIMIT}"
        old = os.pread(fd, _HOSTS_LIMIT, 0)
        new = _with_block(old, block.encode())
        if new != old:
            # Readers in the container see the file while it is written: blank lines instead of a torn tail.
            os.pwrite(fd, new + b"\n" * (len(old) - len(new)), 0)
            os.ftruncate(fd, len(new))
    finally:
        os.close(fd)
    return None


def _with_block(old: bytes, block: bytes) -> bytes:
    """``old`` with its block replaced, or with the block at its end."""
    head, begin, rest = old.partition(_BEGIN.encode())
    if not begin:
        separator = b"" if old.endswith(b"\n") or not old else b"\n"
        return old + separator + block
    _, _, tail = rest.partition(_END.encode())
    return head + block + tail


def _reachable(found: ResolvConf) -> ResolvConf:
    servers = tuple(one for one in found.nameservers if not one.startswith("127.") and one not in ("::1", "0.0.0.0"))
    return ResolvConf(servers, found.search, found.options)


def _read_limited(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_RESOLV_LIMIT)
    except OSError:
        return ""


def _is_address(text: str) -> bool:
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, text)
            return True
        except (OSError, ValueError):
            pass
    return False


def _checked_address(text: str) -> str:
    if not _is_address(text):
        raise PycontainError(f'"{_shown(text)}" is not an IP address')
    return text


def _is_domain(text: str) -> bool:
    plain = text.replace("-", "a").replace("_", "a").replace(".", "a")
    return text.isascii() and plain.isalnum() and len(text) <= 253 and ".." not in text and not text.startswith(".")


def _shown(text: str) -> str:
    """Text of others inside a message: one line, bounded."""
    shown = text if len(text) <= 80 else text[:77] + "..."
    return shown if shown.isprintable() else repr(shown)[1:-1]
