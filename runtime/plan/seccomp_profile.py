"""The calls of the default seccomp profile, in the shape that container engines share.

Everything not named here answers EPERM, or ENOSYS if it is newer than the profile. Names that an architecture
does not have are skipped when the filter is compiled, so that one list serves all.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

FILES: Final = """
access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64
fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listmount listxattr listxattrat llistxattr _llseek
lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2
pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr
removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs
statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat
utime utimensat utimensat_time64 utimes vmsplice write writev
"""
WAITING: Final = """
_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
eventfd2 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64
pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64
"""
MEMORY: Final = """
brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect
mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""
PROCESSES: Final = """
execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid
ioprio_get ioprio_set kill pause pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease process_vm_readv
process_vm_writev ptrace restart_syscall riscv_hwprobe rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
set_robust_list set_thread_area set_tid_address setpgid setpriority setrlimit setsid sigaltstack sigprocmask sigreturn
sysinfo tgkill times tkill ugetrlimit uname uretprobe vfork wait4 waitid waitpid
"""
IDENTITY: Final = """
capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid
getresuid32 getuid getuid32 landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp setfsgid
setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid
setresuid32 setreuid setreuid32 setuid setuid32
"""
# adjtimex and clock_adjtime read the clock; changing it takes CAP_SYS_TIME, which the kernel checks.
TIME: Final = """
adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 getitimer getrandom gettimeofday nanosleep setitimer time timer_create
timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
"""
SOCKETS_AND_IPC: Final = """
accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd recv
recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg sendto
setsockopt shmat shmctl shmdt shmget shutdown socketpair
"""
ALLOWED: Final = " ".join((FILES, WAITING, MEMORY, PROCESSES, IDENTITY, TIME, SOCKETS_AND_IPC))

X86_ALLOWED: Final = "arch_prctl modify_ldt"
ARM_ALLOWED: Final = "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"

# What a capability is about; without it the kernel would refuse most of these, but only after much code has run.
BY_CAPABILITY: Final = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
sethostname setns syslog umount umount2 unshare
""",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: a new user namespace hands out every
# capability inside itself, and with them a great deal of kernel code.
NAMESPACE_FLAGS: Final = 0x7E020000

# personality(2): PER_LINUX, PER_LINUX32, each with and without UNAME26 (0x20000), and the query.
PERSONALITIES: Final = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

# Every address family but AF_ALG (38: the kernel's crypto) and AF_VSOCK (40: the hypervisor), as (mask, value)
# pairs that cover 0 to 47. Masks, because socket(2) takes an int: the kernel drops the high half of the
# register, and a comparison of all 64 bits could be led astray by setting it.
FAMILIES: Final = (
    (0xFFFFFFE0, 0),
    (0xFFFFFFFC, 32),
    (0xFFFFFFFE, 36),
    (0xFFFFFFFF, 39),
    (0xFFFFFFFF, 41),
    (0xFFFFFFFE, 42),
    (0xFFFFFFFC, 44),
)

ARCHITECTURES: Final = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "x86": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "arm": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


def build(caps: frozenset[str], arch: str) -> dict[str, Any]:
    """The profile as OCI ``linux.seccomp``; ``arch`` is a key of ARCHITECTURES (Unsupported if it is not)."""
    if arch not in ARCHITECTURES:
        from pycontain.runtime.errors import Unsupported

        raise Unsupported(f"there is no default seccomp profile for {arch}, only for {' '.join(ARCHITECTURES)}")
    names = ALLOWED.split() + (X86_ALLOWED if arch.startswith("x86") else ARM_ALLOWED).split()
    if arch == "x86":
        # Old 32-bit programs know no other way to a socket. Elsewhere socketcall(2) opens nothing that is
        # conditional above, so that it is no way around FAMILIES either.
        names.append("socketcall")
    for capability, calls in BY_CAPABILITY.items():
        if capability in caps:
            names += calls.split()
    syscalls: list[dict[str, Any]] = [{"names": sorted(set(names)), "action": "SCMP_ACT_ALLOW"}]
    syscalls += [_if("socket", "SCMP_CMP_MASKED_EQ", mask, value) for mask, value in FAMILIES]
    syscalls += [_if("personality", "SCMP_CMP_EQ", value) for value in PERSONALITIES]
    if "CAP_SYS_ADMIN" not in caps:
        syscalls.append(_if("clone", "SCMP_CMP_MASKED_EQ", NAMESPACE_FLAGS, 0))
        # clone3(2) takes its flags in memory, where a filter cannot look; ENOSYS makes C libraries use clone(2).
        syscalls.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": list(ARCHITECTURES[arch]),
        "syscalls": syscalls,
    }


def _if(name: str, op: str, value: int, second: int | None = None) -> dict[str, Any]:
    arg = {"index": 0, "value": value, "op": op}
    if second is not None:
        arg["valueTwo"] = second
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [arg]}
