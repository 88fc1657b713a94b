"""The systemd cgroup driver: a container's cgroup is a transient scope that systemd makes, owns and shows.

systemd is asked over D-Bus for the unit, with ``Delegate=yes``, and for the properties that say what the limits say;
everything below that is cgroup v2's files, as the other driver has it. The properties matter because systemd writes its
own idea of a unit's limits again whenever it is reloaded. Off the start path.

org.freedesktop.systemd1(5), systemd.scope(5), systemd.resource-control(5), https://systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

import posix as os

from pycontain.runtime.errors import Conflict, PycontainError, SpecError, Unsupported
from pycontain.runtime.kernel.cgroup import RESOURCES, write_settings
from pycontain.runtime.kernel.cgroup_v2 import CgroupV2
from pycontain.runtime.kernel.files import read
from pycontain.runtime.kernel.hierarchies import Hierarchy, hierarchies, mode_of
from pycontain.runtime.kernel.host import privileged
from pycontain.runtime.kernel.systemd_properties import annotated, of_devices, of_settings, version
from pycontain.runtime.paths import is_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.systemd_properties import Property

_SYSTEM_BUS = "/run/dbus/system_bus_socket"
_SECONDS = 30.0
_CGROUPS_PATH = "$.linux.cgroupsPath"
_HINT = "--cgroup-manager cgroupfs does without systemd"
_UNIT_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@")
_UNIT_NAME_MAX = 255

class Bus:
    """A connection to the bus of the manager that is ours: the system's for root, the user's otherwise."""

    def __init__(self) -> None:
        if not is_directory("/run/systemd/system"):  # sd_booted(3)
            raise Unsupported(
                "cannot use the systemd cgroup driver: systemd does not run here (no /run/systemd/system)", hint=_HINT
            )
        try:
            from jeepney.io.blocking import DBusConnection
        except ImportError:
            raise Unsupported(
                "cannot use the systemd cgroup driver: the Python package jeepney is not installed",
                hint="pip install jeepney",
            ) from None
        import socket

        self.user = not privileged()
        self._subscribed = False
        address = _user_address() if self.user else _address(_environ("DBUS_SYSTEM_BUS_ADDRESS"), _SYSTEM_BUS)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_SECONDS)
            sock.connect(address)
            _authenticate(sock)
            sock.settimeout(None)
            self._connection = DBusConnection(sock)
        except OSError as error:
            sock.close()
            shown = address.replace("\0", "@")
            raise PycontainError(
                f"cannot reach systemd over the {'user' if self.user else 'system'} bus at {shown}: "
                f"{error.strerror or error}",
                hint=_HINT,
            ) from None

    def call(self, method: str, signature: str, *values: Any) -> tuple[Any, ...]:
        """The answer to a call of the manager. Raises Refused with the name of D-Bus's error."""
        return self._call("org.freedesktop.systemd1.Manager", method, signature, values)

    def property(self, name: str) -> Any:
        """A property of the manager, such as ``Version``."""
        manager = "org.freedesktop.systemd1.Manager"
        return self._call("org.freedesktop.DBus.Properties", "Get", "ss", (manager, name))[0][1]

    def job(self, method: str, signature: str, *values: Any) -> str:
        """Calls what starts a job, and waits for its end: ``done``, or what came of it else."""
        from jeepney import MatchRule, message_bus
        from jeepney.io.blocking import Proxy

        rule = MatchRule(
            type="signal", interface="org.freedesktop.systemd1.Manager", member="JobRemoved",
            path="/org/freedesktop/systemd1",
        )  # fmt: skip
        if not self._subscribed:
            Proxy(message_bus, self._connection, timeout=_SECONDS).AddMatch(rule)
            self.call("Subscribe", "")
            self._subscribed = True
        with self._connection.filter(rule, bufsize=1000) as ended:
            (path,) = self.call(method, signature, *values)
            while True:
                try:
                    body = self._connection.recv_until_filtered(ended, timeout=_SECONDS).body
                except TimeoutError:
                    raise PycontainError(f"systemd did not end {method} of {values[0]} in {_SECONDS:.0f} s") from None
                if body[1] == path:
                    return str(body[3])

    def _call(self, interface: str, method: str, signature: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call

        address = DBusAddress("/org/freedesktop/systemd1", "org.freedesktop.systemd1", interface)
        message = new_method_call(address, method, signature, values)
        try:
            reply = self._connection.send_and_get_reply(message, timeout=_SECONDS)
        except TimeoutError:
            raise PycontainError(f"systemd did not answer {method} in {_SECONDS:.0f} s") from None
        except OSError as error:
            raise PycontainError(f"lost the bus while asking systemd for {method}: {error.strerror}") from None
        if reply.header.message_type is MessageType.error:
            said = str(reply.body[0]) if reply.body else ""
            raise Refused(method, reply.header.fields.get(HeaderFields.error_name, ""), said)
        body: tuple[Any, ...] = reply.body
        return body

    def close(self) -> None:
        self._connection.close()


class Refused(PycontainError):
    """systemd said no; ``name`` is D-Bus's word for it (``org.freedesktop.systemd1.NoSuchUnit``)."""

    def __init__(self, method: str, name: str, text: str) -> None:
        super().__init__(f"systemd refused {method}: {text or name}")
        self.name = name
        self.text = text or name


def _environ(name: str) -> str | None:
    value = os.environ.get(name.encode())
    return value.decode("utf-8", "surrogateescape") if value else None


def _user_address() -> str:
    runtime = _environ("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return _address(_environ("DBUS_SESSION_BUS_ADDRESS"), f"{runtime}/bus")


def _address(given: str | None, default: str) -> str:
    """The socket of the first ``unix:`` address of a list (D-Bus specification, "Server Addresses")."""
    for one in (given or "").split(";"):
        kind, _, rest = one.partition(":")
        keys = dict(item.partition("=")[::2] for item in rest.split(","))
        if kind == "unix" and "path" in keys:
            return keys["path"]
        if kind == "unix" and "abstract" in keys:
            return "\0" + keys["abstract"]
    return default


def _authenticate(sock: Any) -> None:
    """Who we are is what the kernel says: no user id is named, which a user namespace would make a wrong one."""
    sock.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\n")
    said = b""
    while b"\r\nOK " not in b"\r\n" + said or not said.endswith(b"\r\n"):
        more = sock.recv(1024)
        if not more or b"REJECTED" in said + more:
            raise PermissionError(13, "it does not know us")
        said += more
    sock.sendall(b"BEGIN\r\n")


def scope_of(path: str, id: str, user: bool) -> tuple[str, str]:
    """``(slice, unit)`` of a cgroupsPath ``slice:prefix:name``, as runc takes it; "" is the default place.

    Raises SpecError, Unsupported.
    """
    if not path:
        path = f"{'user.slice' if user else 'system.slice'}:pycontain:{id}"
    parts = path.split(":")
    if len(parts) != 3:
        raise SpecError(_CGROUPS_PATH, f"found {path!r}, wanted slice:prefix:name, as the systemd cgroup driver has it")
    slice_, prefix, name = parts
    slice_ = slice_ or ("user.slice" if user else "system.slice")
    if name.endswith(".slice"):
        raise Unsupported(f"{_CGROUPS_PATH}: {name!r} is a slice, and a container is made in a scope")
    unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    if not name or not _UNIT_CHARACTERS.issuperset(unit) or len(unit) > _UNIT_NAME_MAX:
        raise SpecError(_CGROUPS_PATH, f"found {unit!r}, which is not the name of a unit of systemd (systemd.unit(5))")
    return slice_, unit


def slice_path(slice_: str) -> str:
    """``/test.slice/test-a.slice`` for ``test-a.slice``: a slice's name holds its place. Raises SpecError."""
    name = slice_.removesuffix(".slice")
    if name == "-" and slice_ != name:
        return ""
    parts = name.split("-")
    if slice_ == name or not all(parts) or not _UNIT_CHARACTERS.issuperset(slice_):
        raise SpecError(_CGROUPS_PATH, f"found {slice_!r}, which is not the name of a slice (systemd.slice(5))")
    return "".join(f"/{'-'.join(parts[: i + 1])}.slice" for i in range(len(parts)))


class SystemdCgroup(CgroupV2):
    """A scope. See :class:`Cgroup`; ``create``, ``apply`` and ``remove`` ask systemd, the rest is the kernel's."""

    __slots__ = ("_bus", "_held", "_holder", "_properties", "_resources", "_slice", "unit")

    def __init__(self, path: str, found: list[Hierarchy]) -> None:
        super().__init__(path, found)
        self.unit = path.rpartition("/")[2]
        self._bus: Bus | None = None
        self._slice = ""
        self._properties: list[Property] = []
        self._resources: dict[str, Any] | None = None
        self._holder = 0
        self._held = -1

    @classmethod
    def planned(cls, config: dict[str, Any], id: str) -> SystemdCgroup:
        """The scope of a new container. Raises SpecError, Unsupported; PycontainError where systemd is out of reach."""
        bus = Bus()
        found = hierarchies()
        if mode_of(found) != "v2":
            raise Unsupported(
                f"cannot use the systemd cgroup driver: it wants cgroup v2 alone, and this host is {mode_of(found)}",
                hint=_HINT,
            )
        above = bus.property("ControlGroup").rstrip("/")
        own = read("/proc/self/cgroup").rpartition("0::")[2].strip()
        if bus.user and not own.startswith(f"{above}/"):
            # cgroup-v2, "Delegation containment": who moves a process writes to what both places have in common.
            raise Unsupported(
                f"cannot use the user's systemd: this process is in cgroup {own}, which is not below {above}",
                hint="systemd-run --user --scope pycontain-runtime ...",
            )
        slice_, unit = scope_of((config.get("linux") or {}).get("cgroupsPath") or "", id, bus.user)
        made = cls(f"{above}{slice_path(slice_)}/{unit}", found)
        made._bus = bus
        made._slice = slice_
        made._properties = annotated(config.get("annotations") or {})
        return made

    def _systemd(self) -> Bus:
        self._bus = self._bus or Bus()
        return self._bus

    def create(self) -> None:
        """Starts the scope around a process that waits: systemd makes none that is empty. ``entered`` lets that go."""
        self._hold()
        properties: list[Property] = [
            ("Description", ("s", f"pycontain container {self.unit.removesuffix('.scope')}")),
            ("Slice", ("s", self._slice)),
            ("PIDs", ("au", [self._holder])),
            ("Delegate", ("b", True)),
            *((f"{name}Accounting", ("b", True)) for name in ("CPU", "IO", "Memory", "Tasks")),
            ("DefaultDependencies", ("b", False)),
            *self._properties,
        ]
        try:
            try:
                result = self._start(properties)
            except Refused as error:
                if not error.name.endswith(".UnitExists"):
                    raise
                self._reset()  # one that has failed is kept for people to look at
                result = self._start(properties)
            if result != "done":
                raise PycontainError(f"systemd could not start {self.unit}: {result}")
            if not self.exists():
                raise PycontainError(f"systemd started {self.unit}, but there is no cgroup {self.directories[0]}")
            self._prepare()
        except Refused as error:
            self._let_go()
            if error.name.endswith(".UnitExists"):
                raise Conflict(
                    f"cannot start {self.unit}: a unit of that name is there already",
                    hint=f"choose another {_CGROUPS_PATH}, or systemctl stop {self.unit}",
                ) from None
            raise PycontainError(f"cannot start {self.unit}: systemd refused it: {error.text}") from None
        except BaseException:
            self._let_go()
            self.remove()
            raise

    def _start(self, properties: list[Property]) -> str:
        return self._systemd().job("StartTransientUnit", "ssa(sv)a(sa(sv))", self.unit, "fail", properties, [])

    def _hold(self) -> None:
        """A process of ours that ends when we do, or when it is let go."""
        theirs, self._held = os.pipe()
        self._holder = os.fork()
        if self._holder == 0:
            try:
                os.close(self._held)
                os.read(theirs, 1)
            finally:
                os._exit(0)
        os.close(theirs)

    def _let_go(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
            os.waitpid(self._holder, 0)

    def entered(self, pid: int) -> None:
        self._let_go()
        if self._resources is not None:
            resources, self._resources = self._resources, None
            self.apply(resources)

    def apply(self, resources: dict[str, Any]) -> None:
        if self._held >= 0:
            self._resources = resources  # pids.limit does not count the process that waits
            return
        settings = self.settings(resources)
        bus = self._systemd()
        properties = of_settings(settings, version(bus.property("Version")))
        if "devices" in resources and not bus.user:  # a user's manager has no say about devices
            properties += of_devices(resources["devices"] or [])
        before = [(where, path, read(path)) for where, path, _ in settings]
        self._set(properties)
        try:
            write_settings(settings)
        except BaseException:
            self._set(of_settings(before, version(bus.property("Version"))))  # what the files still say
            raise

    def _set(self, properties: list[Property]) -> None:
        if not properties:
            return
        try:
            self._systemd().call("SetUnitProperties", "sba(sv)", self.unit, True, properties)
        except Refused as error:
            names = ", ".join(name for name, _ in properties)
            raise PycontainError(
                f"{RESOURCES.rstrip('.')}: systemd refused to set {names} of {self.unit}: {error.text}"
            ) from None

    def kill_all(self, timeout: float = 10.0) -> None:
        self._let_go()
        super().kill_all(timeout)

    def remove(self) -> None:
        """Stops the scope, and has systemd forget that it failed where it did."""
        try:
            self._systemd().job("StopUnit", "ss", self.unit, "replace")
        except Refused as error:
            if not error.name.endswith((".NoSuchUnit", ".NotLoaded")):
                raise
        self._reset()
        super().remove()

    def _reset(self) -> None:
        try:
            self._systemd().call("ResetFailedUnit", "s", self.unit)
        except Refused as error:
            if not error.name.endswith((".NoSuchUnit", ".NotLoaded")):
                raise
