/* Operations on what a process is: terminal, limits, scheduling, identity, filter, program; included by init.c. */
#pragma once

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif
#define DEVPTS_MAGIC 0x1cd1
#define IOPRIO_WHO_PGRP 2
#define REAP 1u

struct sched_attr_ { /* linux/sched/types.h, which does not live together with sched.h in every libc */
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};

static void op_rlimit(struct cursor *a)
{
	int resource = u_(a);
	struct rlimit limit;

	limit.rlim_cur = u_(a);
	limit.rlim_max = u_(a);
	TRY(setrlimit(resource, &limit));
}

/* Root of a user namespace may lower its hard limits only: what is above them is allowed before it is entered. */
static void op_raise_limit(struct cursor *a)
{
	int resource = u_(a);
	rlim_t hard = u_(a);
	struct rlimit limit;

	TRY(getrlimit(resource, &limit));
	if (limit.rlim_max >= hard)
		return;
	limit.rlim_max = hard;
	TRY(setrlimit(resource, &limit));
}

static void op_scheduler(struct cursor *a)
{
	struct sched_attr_ attr = { .size = sizeof attr };

	attr.policy = u_(a);
	attr.flags = u_(a);
	attr.nice = u_(a);
	attr.priority = u_(a);
	attr.runtime = u_(a);
	attr.deadline = u_(a);
	attr.period = u_(a);
	TRY(syscall(SYS_sched_setattr, 0, &attr, 0));
}

static void op_memory_policy(struct cursor *a)
{
	uint64_t mode = u_(a);
	uint32_t n;
	const char *nodes = b_(a, &n);
	/* The kernel takes one off the number of bits. */
	TRY(syscall(SYS_set_mempolicy, mode, n ? nodes : NULL, n ? 8ul * n + 1 : 0));
}

/* What execve is to make of us for a security module; in our own procfs, whatever is mounted over /proc. */
static void op_label(struct cursor *a)
{
	char path[128];
	const char *file = s_(a);
	ssize_t n = TRY(readlinkat(procfs, "self", path, 32));

	snprintf(path + n, sizeof path - n, "/attr/%s", file);
	procfs_write(path, s_(a));
}

static void op_oom_score(struct cursor *a)
{
	char path[64];
	/* "self" is a symbolic link in procfs; we are asked for by number instead. */
	ssize_t n = TRY(readlinkat(procfs, "self", path, 32));
	memcpy(path + n, "/oom_score_adj", 15);
	procfs_write(path, s_(a));
}

static void op_terminal(struct cursor *a)
{
	int console = u_(a);
	struct winsize size = { 0 };
	struct statfs fs;
	struct stat st;
	size.ws_row = u_(a);
	size.ws_col = u_(a);
	uid_t uid = u_(a);
	bool bind = u_(a);

	/* The multiplexer of the container's own devpts, proven to be one; the peer by ioctl, never by
	 * the name /dev/pts/N, which the image could have planted (CVE-2025-52565). */
	int master = TRY(in_root("/dev/pts/ptmx", O_RDWR | O_NOCTTY));
	TRY(fstatfs(master, &fs));
	TRY(fstat(master, &st));
	if (fs.f_type != DEVPTS_MAGIC || st.st_rdev != makedev(5, 2))
		fail(ENODEV, "/dev/pts/ptmx is not a pseudo-terminal multiplexer");
	int zero = 0;
	TRY(ioctl(master, TIOCSPTLCK, &zero));
	int slave = TRY(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
	TRY(fchown(slave, uid, -1));
	if (size.ws_row || size.ws_col)
		TRY(ioctl(slave, TIOCSWINSZ, &size));
	if (bind) {
		int at = TRY(mount_point("/dev/console", false, true));
		attach(clone_tree(slave, false), at);
	}
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec text = { "/dev/pts/ptmx", 13 };
	struct msghdr message = { .msg_iov = &text, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(rights), &master, sizeof master);
	TRY(sendmsg(console, &message, MSG_NOSIGNAL));
	close(master);
	close(console);
	for (int fd = 0; fd < 3; fd++)
		TRY(dup2(slave, fd));
	TRY(ioctl(0, TIOCSCTTY, 0));
	if (slave > 2)
		close(slave);
}

static void op_chdir(struct cursor *a)
{
	char cwd[PATH_MAX];
	const char *path = s_(a);
	bool may_fail = u_(a);

	if (chdir(path) < 0) {
		if (may_fail && (errno == EACCES || errno == EPERM))
			return;
		fail(errno, "chdir");
	}
	/* Outside our root the kernel answers "(unreachable)/..." (CVE-2024-21626). */
	if (syscall(SYS_getcwd, cwd, sizeof cwd) < 0 || cwd[0] != '/')
		fail(EXDEV, "the working directory is outside the container's root");
}

static void op_user(struct cursor *a)
{
	uid_t uid = u_(a);
	gid_t gid = u_(a);

	TRY(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
	TRY(syscall(SYS_setresgid, gid, gid, gid));
	TRY(syscall(SYS_setresuid, uid, uid, uid));
}

static void op_bounding(struct cursor *a)
{
	uint64_t keep = u_(a);

	for (int cap = 0; cap < 64; cap++)
		if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
			if (errno == EINVAL)
				break; /* the last one that this kernel knows is behind us */
			fail(errno, "prctl(PR_CAPBSET_DROP)");
		}
}

static void op_caps(struct cursor *a)
{
	uint64_t effective = u_(a), permitted = u_(a), inheritable = u_(a);
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = {
		{ (uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable },
		{ (uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32) },
	};
	TRY(syscall(SYS_capset, &head, data));
}

static void op_ambient(struct cursor *a)
{
	uint64_t mask = u_(a);

	for (int cap = 0; cap < 64; cap++)
		if (mask >> cap & 1)
			TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0));
}

static int load_filter(struct cursor *a)
{
	uint32_t n;
	const char *program = b_(a, &n);
	struct sock_fprog filter = { .len = n / sizeof(struct sock_filter), .filter = (struct sock_filter *)program };

	return TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, u_(a), &filter));
}

static void op_seccomp(struct cursor *a)
{
	load_filter(a);
}

/* Python takes the listener out of our descriptors, as execve closes it. From here on the filter decides about our
 * own calls too: no more than a write and a read of the channel. */
static void op_seccomp_notify(struct cursor *a)
{
	uint32_t text[3] = { MSG_listener, 4 };

	text[2] = load_filter(a);
	TRY(write(channel, text, sizeof text));
	await_message(MSG_go);
}

/* pid 1 of --init: pass signals on, reap what is left over, end as the program ends. */
static _Noreturn void reap(pid_t program)
{
	sigset_t all;
	int status;

	syscall(SYS_close_range, 3, ~0u, 0);
	sigfillset(&all);
	for (;;) {
		siginfo_t info;
		int sig = sigwaitinfo(&all, &info);
		if (sig > 0 && sig != SIGCHLD)
			kill(program, sig);
		for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
			if (pid == program)
				_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	}
}

static const char *path_of(char **env)
{
	for (; *env; env++)
		if (!strncmp(*env, "PATH=", 5))
			return *env + 5;
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

/* The next place of $PATH to look for file at; false after the last. */
static bool candidate(const char **rest, const char *file, char path[PATH_MAX])
{
	while (*rest) {
		const char *dir = *rest;
		int n = strcspn(dir, ":");
		*rest = dir[n] ? dir + n + 1 : NULL;
		if (n && snprintf(path, PATH_MAX, "%.*s/%s", n, dir, file) < PATH_MAX)
			return true;
	}
	return false;
}

static bool is_missing(const char *path)
{
	/* What a relative path of $PATH leads to is known in the working directory only. */
	return path[0] == '/' && access(path, F_OK) < 0 && (errno == ENOENT || errno == ENOTDIR);
}

/* What is not there is an error of create, not of start: podman's status 127 and runc's users count on it. */
static void op_find(struct cursor *a)
{
	const char *file = s_(a), *cwd = s_(a), *rest = path_of(l_(a));
	char path[PATH_MAX];

	if (strchr(file, '/')) {
		if (snprintf(path, sizeof path, "%s/%s", *file == '/' ? "" : cwd, file) < (int)sizeof path && is_missing(path))
			fail(ENOENT, "access");
		return;
	}
	while (*file && candidate(&rest, file, path))
		if (!is_missing(path))
			return;
	fail(ENOENT, "not found in $PATH");
}

static void op_exec(struct cursor *a)
{
	const char *file = s_(a);
	char **argv = l_(a), **env = l_(a);
	uint64_t flags = u_(a);
	char path[PATH_MAX];
	int error = ENOENT;

	if (flags & REAP) {
		sigset_t all, none;
		sigfillset(&all);
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &all, NULL);
		pid_t pid = TRY(fork());
		if (pid)
			reap(pid);
		setpgid(0, 0);
		tcsetpgrp(0, getpid()); /* blocked SIGTTOU: allowed from the background; no terminal: no matter */
		sigprocmask(SIG_SETMASK, &none, NULL);
	}
	if (strchr(file, '/')) {
		execve(file, argv, env);
		fail(errno, "execve");
	}
	for (const char *rest = *file ? path_of(env) : NULL; candidate(&rest, file, path);) {
		execve(path, argv, env);
		if (errno == EACCES)
			error = EACCES; /* go on looking, as execvp(3) does */
		else if (errno != ENOENT && errno != ENOTDIR)
			fail(errno, "execve");
	}
	fail(error, "not found in $PATH");
}
