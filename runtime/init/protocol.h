/* The numbers that Python and init share. runtime/plan/ops.py and runtime/channel.py carry the same
 * table; tests/unit/test_protocol.py holds the two against each other.
 *
 * A plan: "PCPL", u32 version, u32 operations, u32 bytes in all; then each operation as
 * u32 code, u32 bytes, arguments. Little endian, unaligned.
 *   u  u64                      s  u32 length, bytes without NUL, one NUL
 *   b  u32 length, bytes        l  u32 count, then count times s
 */
#define PLAN_MAGIC "PCPL"
#define PLAN_VERSION 1
#define PLAN_MAX_BYTES (16u << 20)
#define PLAN_MAX_ITEMS 65536u

#define OPERATIONS(OP)                  \
	OP(1, setns, "uu")              \
	OP(2, unshare, "u")             \
	OP(3, write, "ss")              \
	OP(4, device_filter, "bu")      \
	OP(5, clone, "uu")              \
	OP(6, join, "u")                \
	OP(7, sync, "")                 \
	OP(8, userns_root, "")          \
	OP(9, procfs, "")               \
	OP(10, propagation, "su")       \
	OP(11, root_bind, "s")          \
	OP(12, root_overlay, "slsss")   \
	OP(13, mount, "sssusu")         \
	OP(14, bind, "ssu")             \
	OP(15, attr, "suuuu")           \
	OP(16, mkdir, "suuu")           \
	OP(17, symlink, "ss")           \
	OP(18, mknod, "suuuuu")         \
	OP(19, mask, "s")               \
	OP(20, readonly, "s")           \
	OP(21, sysctl, "ss")            \
	OP(22, hostname, "s")           \
	OP(23, domainname, "s")         \
	OP(24, loopback, "")            \
	OP(25, netlink, "sb")           \
	OP(26, pivot, "")               \
	OP(27, move_root, "")           \
	OP(28, chroot, "")              \
	OP(29, ready, "u")              \
	OP(30, hook, "ssllus")           \
	OP(31, session, "")             \
	OP(32, terminal, "uuuuu")       \
	OP(33, keyring, "s")            \
	OP(34, chdir, "su")             \
	OP(35, umask, "u")              \
	OP(36, rlimit, "uuu")           \
	OP(37, oom_score, "s")          \
	OP(38, groups, "b")             \
	OP(39, user, "uu")              \
	OP(40, bounding, "u")           \
	OP(41, caps, "uuu")             \
	OP(42, ambient, "u")            \
	OP(43, no_new_privs, "")        \
	OP(44, seccomp, "bu")           \
	OP(45, personality, "u")        \
	OP(46, read, "su")              \
	OP(47, exec, "sllu")            \
	OP(48, enter_root, "")          \
	OP(49, dup, "uu")               \
	OP(50, stand_in, "uuuuuu")      \
	OP(51, die_with_parent, "")     \
	OP(105, small_pages, "")        \
	OP(52, clock, "uu")             \
	OP(53, reseed, "b")             \
	OP(54, sync_disks, "")          \
	OP(55, file, "sub")             \
	OP(56, branch, "uu")            \
	OP(70, tree, "usuuuuss")        \
	OP(71, attach, "us")            \
	OP(72, remount, "sl")           \
	OP(73, copy_up, "ssul")         \
	OP(74, mounted, "")             \
	OP(75, device, "suuu")          \
	OP(76, root, "s")               \
	OP(77, chroot_to, "u")          \
	OP(85, scheduler, "uuuuuuu")    \
	OP(86, io_priority, "u")        \
	OP(87, affinity, "b")           \
	OP(88, memory_policy, "ub")     \
	OP(89, label, "ss")             \
	OP(90, raise_limit, "uu")       \
	OP(91, seccomp_notify, "bu")    \
	OP(100, dumpable, "u")          \
	OP(102, host_procfs, "")        \
	OP(110, find, "ssl")            \
	OP(111, beside, "u")

/* The channel: u32 type, u32 bytes, payload. */
#define MESSAGES(MSG)                                                    \
	MSG(1, unshared) /* init → Python: u32 pid */                    \
	MSG(2, go)       /* Python → init: the state for the hooks */    \
	MSG(3, ready)    /* init → Python */                             \
	MSG(4, start)    /* Python → init: the state for the hooks */    \
	MSG(5, exited)   /* guest → host: u32 wait(2)'s status, u32 OOM kills */ \
	MSG(6, failed)   /* init → Python: u32 op, i32 errno, text */    \
	MSG(7, data)     /* init → Python: u32 errno, bytes of a read */ \
	/* What follows is spoken over a machine's ports only. */        \
	MSG(8, hello)    /* both: 8 bytes, sent back as they came */     \
	MSG(9, part)     /* host → guest: the next bytes of the plan */  \
	MSG(10, session) /* host → guest: u64 flags, s cgroup, l files: carry out the plan */ \
	MSG(11, running) /* guest → host: execve has succeeded */        \
	MSG(12, stream)  /* both: u32 stream, bytes */                   \
	MSG(13, credit)  /* both: u32 stream, u32 bytes more */          \
	MSG(14, close)   /* both: u32 stream: no more of it comes, or is wanted */ \
	MSG(15, signal)  /* host → guest: u32 signal */                  \
	MSG(16, resize)  /* host → guest: u32 rows, u32 columns */   \
	MSG(17, listener) /* init → Python: u32 descriptor of the seccomp listener; "go" when it is taken */ \
	MSG(18, mounted)  /* init → Python: prestart and createRuntime are due; "go" when they have run */ \
	MSG(19, plan)     /* Python → init: with it comes a descriptor of the plan, then those that it names */
#define MESSAGE_MAX_BYTES (1u << 20)

#define NO_FD ((uint64_t)-1)
#define NO_OP ((uint32_t)-1) /* a failure that is no operation's */
#define WANT_STDIO 1u         /* flags of a session: pipes for its stdio, */
#define WANT_CONSOLE 2u       /* or a terminal */

