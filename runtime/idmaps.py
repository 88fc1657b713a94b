"""The id maps of a new user namespace: written by us where we may, else by newuidmap(1) and newgidmap(1)."""

from __future__ import annotations

import posix as os

from pycontain.runtime.errors import KernelError, PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    Maps = list[dict[str, int]]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OUTPUT_BYTES = 4096


def write(pid: int, uid_maps: Maps, gid_maps: Maps) -> None:
    """Write both maps of ``pid``'s user namespace. Raises KernelError, or PycontainError with the helper's words.

    Without root a user may map one id, the own one, and the group only once nobody in the namespace can drop a group
    any more (user_namespaces(7)); what lies in /etc/subuid and /etc/subgid the set-user-id helpers map.
    """
    for kind, maps in (("uid", uid_maps), ("gid", gid_maps)):
        own = os.geteuid() if kind == "uid" else os.getegid()
        if os.geteuid() == 0 or is_own(maps, own):
            if kind == "gid" and os.geteuid() != 0:
                _write(f"/proc/{pid}/setgroups", "deny", kind)
            text = "".join(f"{m['containerID']} {m['hostID']} {m['size']}\n" for m in maps)
            _write(f"/proc/{pid}/{kind}_map", text, kind)
        else:
            _helper(pid, kind, maps, own)


def is_own(maps: Maps, own: int) -> bool:
    """Whether the maps map nothing but the id ``own``."""
    return len(maps) == 1 and maps[0]["hostID"] == own and maps[0]["size"] == 1


def _write(path: str, text: str, kind: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        name = path.rpartition("/")[2]
        raise KernelError(
            f"$.linux.{kind}Mappings: cannot write {text!r} to the {name} of the container", error.errno or 0
        ) from None


def _helper(pid: int, kind: str, maps: Maps, own: int) -> None:
    name = f"new{kind}map"
    where = f"$.linux.{kind}Mappings: user {os.geteuid()} cannot map more than its own {kind} {own} without {name}"
    program = _find(name)
    if program is None:
        raise PycontainError(f"{where}, which is not in $PATH", hint="apt-get install uidmap")
    argv = [name, str(pid), *(str(m[key]) for m in maps for key in ("containerID", "hostID", "size"))]
    status, said = _output(program, argv)
    if status:
        words = " ".join(argv[2:])
        raise PycontainError(
            f"{where}, and {name} refused {words!r}: {said or f'exit status {status}'}",
            hint=f"/etc/sub{kind} says which ids a user may map (USER:FIRST:COUNT)",
        )


def _find(name: str) -> str | None:
    path = os.environ.get(b"PATH", _PATH.encode()).decode("utf-8", "surrogateescape")
    candidates = (f"{directory}/{name}" for directory in path.split(":") if directory.startswith("/"))
    return next((candidate for candidate in candidates if os.access(candidate, os.X_OK)), None)


def _output(program: str, argv: list[str]) -> tuple[int, str]:
    """Run a helper; its exit status, and the last line of what it said on standard error."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.posix_spawn(program, argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 2)])
    except OSError as error:
        os.close(reader)
        raise KernelError(f"cannot start {program}", error.errno or 0) from None
    finally:
        os.close(writer)
    said = b""
    while len(said) < _OUTPUT_BYTES and (part := os.read(reader, _OUTPUT_BYTES)):
        said += part
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return status, lines[-1] if lines else ""
