/* init: carries out an encoded plan, operation by operation.
 *
 * Python decides, this program obeys: no JSON, no defaults, no policy. It is started from a sealed
 * memfd (the container can reach /proc/PID/exe; the seals answer CVE-2019-5736), reads the plan, and
 *   stage 0  joins or prepares namespaces and clones the container's first process with CLONE_PARENT,
 *            so that this process is a child of whoever started us, and leaves;
 *   child    makes the container, says "ready", waits for "start", and becomes the container's program.
 *
 * Trust: the plan is trusted. What lies below the root file system is not: every path there is resolved
 * with openat2(RESOLVE_IN_ROOT) against the root's file descriptor, then used as a descriptor.
 *
 *   argv: BASE AHEAD     descriptor BASE is the channel. The plan comes over it, with the descriptors that it names by
 *                        number; 3..BASE-1 are passed on to the container's program (--preserve-fds). AHEAD: new
 *                        namespaces of the container's first process, to be made while Python still plans
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/filter.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "plan.h"
#include "root.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4
#endif
#define KEYCTL_JOIN_SESSION_KEYRING 1
#define SCM_MAX_FD 253 /* unix(7) */

static int channel = -1;      /* the dialogue with Python */
static int procfs = -1;       /* our own procfs, attached nowhere */
static uint32_t op_index;     /* what "failed" reports */
static uint64_t skip;         /* operations that are another process's */
static uint64_t ahead;        /* namespaces of the first process that its maker is in already */
static uint64_t beside;       /* operations behind the clone that are stage 0's */
static uint64_t left;         /* operations until stage 0 ends, and this one; 0: it does not know yet */
static char state[MESSAGE_MAX_BYTES];     /* the container's state, for the hooks: payload of go and start */
static uint32_t state_bytes;

static void send_message(uint32_t type, const void *payload, uint32_t n)
{
	uint32_t head[2] = { type, n };
	struct iovec v[2] = { { head, 8 }, { (void *)payload, n } };

	/* A short write means that nobody listens any more; the next read says so. */
	for (;;) {
		ssize_t w = sendmsg(channel, &(struct msghdr){ .msg_iov = v, .msg_iovlen = 2 }, MSG_NOSIGNAL);
		if (w < 0 && errno == EINTR)
			continue;
		for (int i = 0; i < 2 && w > 0; i++) {
			size_t part = (size_t)w < v[i].iov_len ? (size_t)w : v[i].iov_len;
			v[i].iov_base = (char *)v[i].iov_base + part;
			v[i].iov_len -= part;
			w -= part;
		}
		if (w < 0 || v[0].iov_len + v[1].iov_len == 0)
			return;
	}
}

static _Noreturn void fail(int error, const char *detail)
{
	char payload[8 + 128];
	size_t n = strnlen(detail, 128);

	memcpy(payload, &op_index, 4);
	memcpy(payload + 4, &error, 4);
	memcpy(payload + 8, detail, n);
	send_message(MSG_failed, payload, 8 + n);
	_exit(125);
}

#define TRY(call) __extension__({ long r_ = (long)(call); if (r_ < 0) fail(errno, #call); r_; })

static void read_exactly(void *to, size_t n)
{
	char *p = to;

	while (n) {
		ssize_t r = read(channel, p, n);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			_exit(125); /* Python is gone: nobody is left to tell */
		p += r;
		n -= r;
	}
}

static void await_message(uint32_t type)
{
	uint32_t head[2];

	read_exactly(head, 8);
	if (head[0] != type || head[1] > sizeof state)
		fail(EPROTO, "unexpected message");
	state_bytes = head[1];
	read_exactly(state, state_bytes);
}

/* ---- arguments (plan_valid has checked them) ---- */

static uint64_t u_(struct cursor *a)
{
	uint64_t v = 0;
	if (!take(a, &v, 8))
		_exit(125);
	return v;
}

static const char *s_(struct cursor *a)
{
	const char *s;
	if (!take_string(a, &s))
		_exit(125);
	return s;
}

static const char *b_(struct cursor *a, uint32_t *n)
{
	const char *s;
	if (!take_bytes(a, &s, n))
		_exit(125);
	return s;
}

static char **l_(struct cursor *a)
{
	uint32_t n;
	if (!take(a, &n, 4))
		_exit(125);
	char **list = mmap(NULL, (n + 1) * sizeof *list, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (list == MAP_FAILED)
		fail(errno, "memory for arguments");
	for (uint32_t i = 0; i < n; i++)
		list[i] = (char *)s_(a);
	list[n] = NULL;
	return list;
}

#include "mounts.h"
#include "copyup.h"
#include "agent.h"
#include "stand_in.h"
#include "process.h"

/* ---- operations ---- */

static void op_write(struct cursor *a)
{
	int fd = TRY(open(s_(a), O_WRONLY | O_CLOEXEC));
	const char *data = s_(a);
	TRY(write(fd, data, strlen(data)));
	close(fd);
}

static void op_device_filter(struct cursor *a)
{
	uint32_t n;
	const char *program = b_(a, &n);
	int cgroup = u_(a);
	union bpf_attr load = { .prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insn_cnt = n / sizeof(struct bpf_insn),
				.insns = (uintptr_t)program, .license = (uintptr_t) "GPL" };
	int prog = TRY(syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load));
	union bpf_attr attach_ = { .target_fd = cgroup, .attach_bpf_fd = prog, .attach_type = BPF_CGROUP_DEVICE,
				   .attach_flags = BPF_F_ALLOW_MULTI };
	TRY(syscall(SYS_bpf, BPF_PROG_ATTACH, &attach_, sizeof attach_));
	close(prog);
}

/* exit_signal stays 0: with CLONE_PARENT the kernel takes our own. */
static void op_clone(struct cursor *a)
{
	uint64_t flags = u_(a), cgroup = u_(a);
	struct clone_args args = { .flags = (flags & ~ahead) | CLONE_PARENT };

	if (cgroup != NO_FD) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = cgroup;
	}
	uint32_t pid = TRY(syscall(SYS_clone3, &args, sizeof args));
	if (pid == 0) {
		skip = beside;
		return;
	}
	send_message(MSG_unshared, &pid, 4);
	left = beside + 1;
}

static void op_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int fd = TRY(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	TRY(ioctl(fd, SIOCGIFFLAGS, &request));
	request.ifr_flags |= IFF_UP;
	TRY(ioctl(fd, SIOCSIFFLAGS, &request));
	close(fd);
}

static void op_netlink(struct cursor *a)
{
	uint32_t n;
	char reply[8192] __attribute__((aligned(8)));

	s_(a); /* the description is for people */
	const char *request = b_(a, &n);
	int fd = TRY(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	TRY(sendto(fd, request, n, 0, (struct sockaddr *)&kernel, sizeof kernel));
	ssize_t got = TRY(recv(fd, reply, sizeof reply, 0));
	struct nlmsghdr *head = (struct nlmsghdr *)reply;
	struct nlmsgerr *ack = NLMSG_DATA(head);
	if ((size_t)got < sizeof *head + sizeof ack->error || head->nlmsg_type != NLMSG_ERROR)
		fail(EPROTO, "no acknowledgement");
	if (ack->error)
		fail(-ack->error, "rtnetlink");
	close(fd);
}

static void op_ready(struct cursor *a)
{
	uint64_t listener = u_(a);

	send_message(MSG_ready, NULL, 0);
	if (listener != NO_FD) {
		close(channel);
		channel = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (channel < 0)
			_exit(125);
		close(listener);
	}
	await_message(MSG_start);
}

static void op_hook(struct cursor *a)
{
	s_(a); /* where the configuration has it, for people */
	const char *path = s_(a);
	char **argv = l_(a), **env = l_(a), text[64];
	uint64_t timeout = u_(a); /* seconds; 0: none */
	const char *directory = s_(a);
	int error = 0, status, in, report[2];

	/* A file, not a pipe: the state may be more than a pipe holds, and nobody need read it. */
	in = TRY(memfd_create("state", MFD_CLOEXEC));
	TRY(write(in, state, state_bytes));
	TRY(lseek(in, 0, SEEK_SET));
	TRY(pipe2(report, O_CLOEXEC));
	pid_t pid = TRY(fork());
	if (pid == 0) {
		dup2(in, 0);
		syscall(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC); /* what is handed on to the container too */
		if (!*directory || chdir(directory) == 0)
			execve(path, argv, env);
		_exit(write(report[1], &errno, sizeof errno) < 0);
	}
	close(in);
	close(report[1]);
	if (read(report[0], &error, sizeof error) > 0) {
		waitpid(pid, NULL, 0);
		fail(error, "cannot be executed");
	}
	close(report[0]);
	if (timeout) {
		int fd = TRY(syscall(SYS_pidfd_open, pid, 0));
		struct pollfd p = { .fd = fd, .events = POLLIN };
		if (poll(&p, 1, timeout * 1000) == 0) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
			snprintf(text, sizeof text, "was killed after its timeout of %llu s", (unsigned long long)timeout);
			fail(0, text);
		}
		close(fd);
	}
	TRY(waitpid(pid, &status, 0));
	if (status) {
		snprintf(text, sizeof text, WIFEXITED(status) ? "ended with exit status %d" : "was killed by signal %d",
			 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
		fail(0, text);
	}
}

static void op_read(struct cursor *a)
{
	static char data[4 + MESSAGE_MAX_BYTES];
	uint32_t error = 0, n = 0;
	const char *path = s_(a);
	uint64_t limit = u_(a);
	/* O_NONBLOCK: a fifo planted by the image must not hold us. */
	int fd = in_root(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (limit > MESSAGE_MAX_BYTES - 4)
		limit = MESSAGE_MAX_BYTES - 4;
	if (fd < 0 || fstat(fd, &st) < 0)
		error = errno;
	else if (!S_ISREG(st.st_mode))
		error = EINVAL;
	while (!error && n < limit) {
		ssize_t r = read(fd, data + 4 + n, limit - n);
		if (r <= 0) {
			error = r < 0 ? errno : 0;
			break;
		}
		n += r;
	}
	memcpy(data, &error, 4);
	send_message(MSG_data, data, 4 + (error ? 0 : n));
	close(fd);
}

/* A helper beside the program: the next operations, with an exec at their end, are a child's. */
static void op_branch(struct cursor *a)
{
	uint64_t count = u_(a);
	struct clone_args args = { .flags = u_(a), .exit_signal = SIGCHLD };

	if (TRY(syscall(SYS_clone3, &args, sizeof args)) != 0)
		skip = count;
}

static void op_clock(struct cursor *a)
{
	struct timespec now = { 0 };

	now.tv_sec = u_(a);
	now.tv_nsec = u_(a);
	TRY(clock_settime(CLOCK_REALTIME, &now));
}

static void op_reseed(struct cursor *a)
{
	struct { int bits, bytes; char data[256]; } pool;
	uint32_t n;
	const char *data = b_(a, &n);
	int fd = TRY(open("/dev/urandom", O_RDONLY | O_CLOEXEC));

	pool.bytes = n < sizeof pool.data ? n : sizeof pool.data;
	pool.bits = 8 * pool.bytes;
	memcpy(pool.data, data, pool.bytes);
	TRY(ioctl(fd, RNDADDENTROPY, &pool));
	TRY(ioctl(fd, RNDRESEEDCRNG));
	close(fd);
}

static void carry_out(uint32_t code, struct cursor *a)
{
	uint32_t n;
	const char *s;

	switch (code) {
	case OP_setns: {
		int fd = u_(a);
		TRY(setns(fd, u_(a)));
		break;
	}
	case OP_unshare: TRY(unshare(u_(a))); break;
	case OP_write: op_write(a); break;
	case OP_device_filter: op_device_filter(a); break;
	case OP_beside: beside = u_(a); break;
	case OP_clone: op_clone(a); break;
	/* One thread that moves itself through v1's "tasks" takes no lock over all thread groups. */
	case OP_join: TRY(write(u_(a), "0", 1)); break;
	case OP_sync: await_message(MSG_go); break;
	case OP_userns_root:
		TRY(syscall(SYS_setresgid, 0, 0, 0));
		TRY(syscall(SYS_setresuid, 0, 0, 0));
		break;
	case OP_procfs: op_procfs(); break;
	case OP_propagation:
		s = s_(a);
		TRY(mount(NULL, s, NULL, u_(a), NULL));
		break;
	case OP_root_bind: op_root_bind(a); break;
	case OP_root_overlay: op_root_overlay(a); break;
	case OP_mount: op_mount(a); break;
	case OP_bind: op_bind(a); break;
	case OP_attr: op_attr(a); break;
	case OP_mkdir: op_mkdir(a); break;
	case OP_symlink: op_symlink(a); break;
	case OP_mknod: op_mknod(a); break;
	case OP_mask: op_mask(a); break;
	case OP_readonly: op_readonly(a); break;
	case OP_sysctl: op_sysctl(a); break;
	case OP_hostname: s = s_(a); TRY(sethostname(s, strlen(s))); break;
	case OP_domainname: s = s_(a); TRY(setdomainname(s, strlen(s))); break;
	case OP_loopback: op_loopback(); break;
	case OP_netlink: op_netlink(a); break;
	case OP_pivot: op_pivot(); break;
	case OP_move_root: op_move_root(); break;
	case OP_chroot: op_chroot(); break;
	case OP_ready: op_ready(a); break;
	case OP_hook: op_hook(a); break;
	case OP_session: TRY(setsid()); break;
	case OP_terminal: op_terminal(a); break;
	case OP_keyring: TRY(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, s_(a))); break;
	case OP_chdir: op_chdir(a); break;
	case OP_umask: umask(u_(a)); break;
	case OP_rlimit: op_rlimit(a); break;
	case OP_raise_limit: op_raise_limit(a); break;
	case OP_scheduler: op_scheduler(a); break;
	case OP_io_priority: TRY(syscall(SYS_ioprio_set, IOPRIO_WHO_PGRP, 0, u_(a))); break;
	case OP_affinity: s = b_(a, &n); TRY(syscall(SYS_sched_setaffinity, 0, n, s)); break;
	case OP_memory_policy: op_memory_policy(a); break;
	case OP_label: op_label(a); break;
	case OP_oom_score: op_oom_score(a); break;
	case OP_groups: s = b_(a, &n); TRY(syscall(SYS_setgroups, n / 4, n ? s : NULL)); break;
	case OP_user: op_user(a); break;
	case OP_bounding: op_bounding(a); break;
	case OP_caps: op_caps(a); break;
	case OP_ambient: op_ambient(a); break;
	case OP_no_new_privs: TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); break;
	case OP_seccomp: op_seccomp(a); break;
	case OP_seccomp_notify: op_seccomp_notify(a); break;
	case OP_personality: TRY(personality(u_(a))); break;
	case OP_read: op_read(a); break;
	case OP_find: op_find(a); break;
	case OP_exec: op_exec(a); break;
	case OP_enter_root: root = TRY(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC)); break;
	case OP_dup: {
		int fd = u_(a);
		TRY(dup2(fd, u_(a)));
		break;
	}
	case OP_stand_in: op_stand_in(a); break;
	case OP_die_with_parent: op_die_with_parent(); break;
	case OP_small_pages: TRY(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)); break;
	case OP_clock: op_clock(a); break;
	case OP_reseed: op_reseed(a); break;
	case OP_sync_disks: sync(); break;
	case OP_branch: op_branch(a); break;
	case OP_file: op_file(a); break;
	case OP_dumpable: TRY(prctl(PR_SET_DUMPABLE, u_(a), 0, 0, 0)); break;
	/* Where none of our own is to be had; not yet covered by anything that the container has a say in. */
	case OP_host_procfs: procfs = TRY(open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC)); break;
	case OP_tree: op_tree(a); break;
	case OP_attach: {
		uint64_t slot = u_(a);
		attach_at(trees[slot % TREES_MAX], s_(a));
		break;
	}
	case OP_remount: op_remount(a); break;
	case OP_copy_up: op_copy_up(a); break;
	case OP_device: op_device(a); break;
	case OP_mounted:
		send_message(MSG_mounted, NULL, 0);
		await_message(MSG_go);
		break;
	case OP_root: root = TRY(open(s_(a), O_PATH | O_DIRECTORY | O_CLOEXEC)); break;
	case OP_chroot_to: root = u_(a); op_chroot(); break;
	}
}

/* What a process that is to be a container's must not have of whoever started it; before there is a plan, which is awaited. */
static void forget_starter(void)
{
	sigset_t none;

	/* Nobody in the container may ptrace us or read our descriptors (CVE-2016-9962). */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	/* Python ignores SIGPIPE and SIGXFSZ, posix_spawn(3) of glibc its own two (32, 33), and exec keeps that. Without the
	 * C library, which would not touch those. */
	for (int sig = 1; sig <= 64; sig++)
		syscall(SYS_rt_sigaction, sig, (const uint64_t[4]){ 0 }, NULL, 8);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* The channel in descriptor "base", the plan in the next, and what it names by number behind it; no other survives. */
static int obey(unsigned base, unsigned count)
{
	struct cursor ops = { 0 }, args;
	struct stat st;
	uint32_t total = 0, code;

	channel = base;
	TRY(syscall(SYS_close_range, base + count, ~0u, 0));
	TRY(syscall(SYS_close_range, base, ~0u, CLOSE_RANGE_CLOEXEC));
	TRY(fstat(base + 1, &st));
	if ((uint64_t)st.st_size > PLAN_MAX_BYTES)
		fail(E2BIG, "plan");
	char *plan = mmap(NULL, st.st_size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE, base + 1, 0);
	if (plan == MAP_FAILED)
		fail(errno, "plan");
	close(base + 1);
	if (!plan_valid(plan, st.st_size, &ops, &total))
		fail(EBADMSG, "plan");
	for (op_index = 0; op_index < total; op_index++) {
		if (!next_op(&ops, &code, &args))
			fail(EBADMSG, "plan");
		if (skip)
			skip--;
		else
			carry_out(code, &args);
		if (left && --left == 0)
			_exit(0);
	}
	return 0;
}

/* Waits for the plan; the number of descriptors from "base" on. */
static unsigned receive_plan(unsigned base)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(SCM_MAX_FD * sizeof(int))];
	} control;
	uint32_t head[2];
	struct iovec v = { head, sizeof head };
	struct msghdr message = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	ssize_t got;
	int fds[SCM_MAX_FD];

	TRY(syscall(SYS_close_range, base + 1, ~0u, 0)); /* what our starter leaked */
	while ((got = recvmsg(channel, &message, MSG_WAITALL)) < 0 && errno == EINTR)
		;
	if (got <= 0)
		_exit(125); /* Python is gone, or plans nothing */
	if (got != sizeof head || head[0] != MSG_plan || message.msg_flags & MSG_CTRUNC || message.msg_controllen < CMSG_LEN(sizeof(int)))
		fail(EPROTO, "receive the plan");
	unsigned n = (control.head.cmsg_len - CMSG_LEN(0)) / sizeof(int);
	memcpy(fds, CMSG_DATA(&control.head), n * sizeof(int));
	/* Each came to the lowest number that was free, so none is above its place, and the last to move is in nobody's. */
	for (unsigned i = n; i-- > 0;)
		if (fds[i] != (int)(base + 1 + i)) {
			TRY(dup2(fds[i], base + 1 + i));
			close(fds[i]);
		}
	return 1 + n;
}

int main(int argc, char **argv)
{
	unsigned base = argc == 3 ? atoi(argv[1]) : 0;

	if (getpid() == 1 && strcmp(argv[0], "/init") == 0)
		agent();
	if (base < 3) {
		static const char usage[] = "pycontain-init is started by pycontain, with a plan\n";
		if (write(2, usage, sizeof usage - 1) < 0)
			return 125;
		return 125;
	}
	channel = base;
	ahead = strtoull(argv[2], NULL, 10);
	if (ahead && unshare(ahead) < 0)
		ahead = 0; /* the clone will say why */
	forget_starter();
	return obey(base, receive_plan(base));
}
