"""The claims of isolation: what is attacked, and what proves that an attack got there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pycontain.isolation.model import Claim

# What proves that an attack reached the host:
# secret: it says what is in the decoy · signal: the decoy process got the signal · name: the host's name has changed ·
# kernel: the kernel came past its check of rights, and it is the host's kernel · pid: the same, in the host's process
# namespace · program: the file that it could write to is one of the host's.
Proof = Literal["secret", "signal", "name", "kernel", "pid", "program"]


@dataclass(frozen=True, slots=True)
class Attack:
    """A claim, and what proves that it does not hold."""

    claim: Claim
    proof: Proof


_PROOF = {
    "secret": "Leaked where it says what is in the decoy.",
    "signal": "Leaked where the decoy process got the signal.",
    "name": "Leaked where the host's own name has changed after it; it is changed back.",
    "kernel": "Leaked where the kernel came past its check of rights, and is the host's (its boot id says so).",
    "pid": "Leaked where the kernel came past its check of rights in the host's own process namespace.",
    "program": "Leaked where the file that could be opened is one of the host's (its inode says so).",
}


def _attacks(kind: str, proof: Proof, *rows: tuple[str, str, str] | tuple[str, str, str, str]) -> tuple[Attack, ...]:
    return tuple(
        Attack(Claim(row[0], row[1], f"{row[2]} {_PROOF[proof]}", kind, row[3] if len(row) > 3 else ""), proof)
        for row in rows
    )


FILES = _attacks(
    "files",
    "secret",
    ("file_path", "Files are out of sight", "Open a file of the host by its path."),
    ("file_write", "Files cannot be written to", "Open a file of the host for writing; nothing is written."),
    ("file_proc_root", "No way by /proc/PID/root",
     "Open a file of the host below the root directory of every process that is seen."),
    ("file_proc_cwd", "No way by /proc/PID/cwd",
     "Open a file of the host from the working directory of every process that is seen, and upwards."),
    ("file_handle", "No way by file handles",
     "Open a file of the host by its handle with open_by_handle_at, from any directory of the same file system.",
     "CVE-2014-3519"),
    ("root_escape", "No way out of the root directory",
     "Change the root directory once more and go upwards from outside of it; take the root directory's mount away."),
    ("host_namespaces", "No way into other mount namespaces",
     "Enter the mount namespace of process 1, and of every process that is seen, with setns."),
    ("descriptors", "Nothing was left open",
     "Go upwards from the working directory and from every descriptor that the program was started with.",
     "CVE-2024-21626"),
)  # fmt: skip

PROCESSES = (
    *_attacks(
        "processes",
        "secret",
        ("process_seen", "Processes are out of sight", "Read the command line of every process that is seen."),
        ("process_environment", "Their environment is out of reach",
         "Read the environment of every process that is seen."),
        ("process_memory", "Their memory is out of reach",
         "Read a process of the host with process_vm_readv and /proc/PID/mem."),
        ("process_trace", "They cannot be traced", "Attach to a process of the host with ptrace and read its memory."),
        ("process_descriptor", "Their descriptors cannot be taken",
         "Take a descriptor of a process of the host with pidfd_getfd."),
    ),
    *_attacks(
        "processes", "signal", ("process_signal", "They cannot be signalled", "Send a process of the host a signal.")
    ),
    *_attacks(
        "processes",
        "kernel",
        ("program_file", "Their programs cannot be replaced",
         "Open for writing, through /proc/PID/exe, the program of every other process that is seen; nothing is "
         "written. That it is executed just now counts as leaked: it ends some time."),
    ),
)  # fmt: skip

IPC = _attacks(
    "communication",
    "secret",
    ("socket_path", "Sockets cannot be reached by path", "Connect to a Unix socket of the host by its path."),
    ("socket_abstract", "Abstract sockets cannot be reached",
     "Connect to a Unix socket of the host by its abstract name.", "CVE-2020-15257"),
    ("shared_memory_sysv", "System V shared memory is apart", "Attach System V shared memory of the host by its key."),
    ("shared_memory_posix", "POSIX shared memory is apart", "Open POSIX shared memory of the host by its name."),
    ("message_queue", "Message queues are apart", "Receive from a POSIX message queue of the host (and send it back)."),
    ("keyring_session", "The session's keys are apart",
     "Search the session keyring for a key of the session that the level was started from.",
     "AF_ALG/keyring/io_uring class"),
    ("keyring_user", "The user's keys are apart",
     "Search the user keyring for a key of the user who started the level. A user has one keyring in each user "
     "namespace: where a container has none of its own, root's keys on the host are those of root in it.",
     "AF_ALG/keyring/io_uring class"),
)  # fmt: skip

NETWORK = _attacks(
    "network",
    "secret",
    ("socket_tcp", "The loopback is apart", "Connect to a TCP port of the host's loopback address."),
    ("network_capture", "Traffic cannot be listened to",
     "Listen with a packet socket to what goes over the host's loopback."),
)  # fmt: skip

DEVICES = (
    *_attacks(
        "devices",
        "secret",
        ("disk_own_node", "No disk by a device node", "Make the device node of a disk of the host, and read the disk.",
         "GHSA-g54h"),
        ("disk_given_node", "No disk in /dev", "Read a disk of the host through its device node in /dev."),
        ("disk_mount", "No disk can be mounted",
         "Mount a disk of the host read-only, with one's own rights and with those of a new user namespace."),
    ),
    *_attacks(
        "devices",
        "kernel",
        ("kernel_memory", "The memory of the machine is out of reach",
         "Open /dev/mem, /dev/kmem, /dev/port, /proc/kcore, or a device node for them, for reading."),
        ("kernel_log", "The kernel's log is out of reach", "Read the kernel's log with syslog and /dev/kmsg."),
        ("io_ports", "Ports of the machine are out of reach", "Ask for I/O ports with iopl and ioperm."),
    ),
)  # fmt: skip

_BY_MOUNTS = "also after a change of its mount and in new mounts and user namespaces; nothing is written."

KERNEL = (
    *_attacks(
        "kernel",
        "kernel",
        ("core_pattern", "The handler of core files is out of reach",
         f"Open /proc/sys/kernel/core_pattern for writing, {_BY_MOUNTS}"),
        ("sysrq", "SysRq is out of reach",
         f"Open /proc/sysrq-trigger or /proc/sys/kernel/sysrq for writing, {_BY_MOUNTS}"),
        ("sysctl", "Settings in /proc/sys are out of reach",
         f"Open settings of the whole kernel in /proc/sys for writing, {_BY_MOUNTS}"),
        ("sysfs", "Settings in /sys are out of reach",
         f"Open kernel/uevent_helper and other files of /sys for writing, {_BY_MOUNTS}"),
        ("release_agent", "The cgroups' release agent is out of reach",
         "Open the release_agent of a cgroup hierarchy for writing, in mounts that are there and in new ones; nothing "
         "is written. In a new user namespace an open is tried, but proves nothing: since Linux 5.17 no write is taken "
         "there.", "CVE-2022-0492"),
        ("cgroup_host", "Cgroups of others are out of reach",
         "Open cgroup.procs or tasks in the root of a cgroup hierarchy for writing; nothing is written.",
         "CVE-2023-25809"),
        ("kernel_module", "No module can be loaded",
         "init_module with what is no module: EPERM comes before the image is looked at, ENOEXEC after it."),
        ("clock", "The clock cannot be set", "Set the tick of the clock to what it is, with adjtimex."),
        ("kexec", "No other kernel can be loaded",
         "kexec_load with flags that there are not: EPERM comes before EINVAL."),
        ("swap", "Swap cannot be set up", "swapon of a path that is not there: EPERM comes before ENOENT."),
        ("accounting", "Accounting cannot be set up", "acct with a path that is not there: EPERM comes before ENOENT."),
        ("masked_files", "Files that tell of the host are masked",
         "Look into /proc/kcore, /proc/keys, /proc/timer_list, /sys/firmware and others, also after an umount of what "
         "masks them."),
    ),
    *_attacks(
        "kernel", "name", ("host_name", "The host's name cannot be changed", "Change the host's name with sethostname.")
    ),
    *_attacks(
        "kernel",
        "pid",
        ("reboot", "The host cannot be rebooted",
         "reboot(2) without its magic numbers: EPERM comes before EINVAL. In a process namespace of its own it would "
         "end no more than that."),
    ),
)  # fmt: skip

PRIVILEGES = _attacks(
    "privileges",
    "kernel",
    ("set_user_id", "No program gives back root's rights",
     "Execute a set-user-ID program of root's as another user. It becomes root of the container only: what that is "
     "worth, the other rows say."),
    ("inherited_capabilities", "No program hands on capabilities",
     "Execute a program whose file has inheritable capabilities as another user: what it gets is what the runtime made "
     "inheritable.",
     "CVE-2022-29162"),
)  # fmt: skip

# Not a leak by itself: what is behind these doors has had holes, and a level that keeps them shut has one less to fear.
_DOOR = "To be let in counts as leaked: that much more of the kernel is there to be attacked."
SURFACE = tuple(
    Attack(Claim(name, title, f"{attack} {_DOOR} {_PROOF['kernel']}", "kernel surface", row), "kernel")
    for name, title, attack, row in (
        ("user_namespace", "No user namespaces", "unshare(CLONE_NEWUSER).", ""),
        ("mount", "No mounts", "Mount a tmpfs in a mount namespace of one's own.", ""),
        ("mount_nested", "No mounts by a user namespace",
         "Mount a tmpfs in a new user namespace, and make it the root directory with pivot_root.", ""),
        ("io_uring", "No io_uring", "io_uring_setup.", "AF_ALG/keyring/io_uring class"),
        ("bpf", "No bpf", "Load a program of two instructions with bpf(BPF_PROG_LOAD).", ""),
        ("perf", "No perf", "perf_event_open of a software counter of one's own.", ""),
        ("userfaultfd", "No userfaultfd", "userfaultfd, for user mode only where it has to be.", ""),
        ("crypto_socket", "No AF_ALG", "Bind an AF_ALG socket to a hash.", "AF_ALG/keyring/io_uring class"),
        ("vsock", "No AF_VSOCK", "Make an AF_VSOCK socket.", ""),
        ("packet_socket", "No AF_PACKET", "Make an AF_PACKET socket.", ""),
        ("keyctl", "No keyctl", "Ask for a keyring with keyctl.", "AF_ALG/keyring/io_uring class"),
        ("personality", "No other personality", "Turn address randomisation off with personality.", ""),
    )
)  # fmt: skip

# While another program is started in the same container, from outside (exec).
ENTERING = (
    *_attacks(
        "processes",
        "secret",
        ("entering_process", "Who enters the container cannot be followed back",
         "While a process enters the container, go upwards from its directories and descriptors, before it executes "
         "its program.", "CVE-2016-9962"),
    ),
    *_attacks(
        "processes",
        "program",
        ("entering_program", "The runtime's program cannot be replaced",
         "While a process enters the container, take hold of the program that it executes just then, and open it for "
         "writing as soon as it has ended; nothing is written.", "CVE-2019-5736"),
    ),
)  # fmt: skip

ATTACKS = (*FILES, *PROCESSES, *IPC, *NETWORK, *DEVICES, *KERNEL, *PRIVILEGES, *SURFACE)
