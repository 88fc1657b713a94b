/* The guest's agent: this very program as pid 1 of a machine.
 *
 * It makes the few mounts that every container needs, waits until the host speaks on one of the ports, and then forks a
 * session for that port: hello, the plan in parts, "session", and from there the dialogue of any container, with the
 * streams beside it (relay.h). A plan without a clone is a call: its operations are carried out in the guest itself.
 * When the host hangs up, the session's process is killed and the port is free again.
 *
 * Trust: the host is trusted. The container is not, and reaches none of this: it has namespaces of its own here too.
 */
#pragma once
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/reboot.h>

#include "relay.h"

#define MAX_PORTS 64
#define DRAIN_MS 500 /* how long a survivor may keep the output open after the process's end, */
#define CONNECT_MS 1000
#define DRAIN_BYTES (1u << 20) /* and how much of it may come after that: more than a pipe holds */

static void forget_starter(void);
static int obey(unsigned base, unsigned count);

static struct {
	int plan, cgroup, master;
	uint32_t plan_bytes;
	pid_t stage0, process;
	bool failed, ended, finished;
	int stage0_status, status;
	long long drain_until;
} session;
static struct winsize screen; /* of the next terminal too: the host says it as soon as it is connected */

static void session_fails(int error, const char *what, const char *object)
{
	char payload[8 + 256];
	uint32_t index = NO_OP;

	memcpy(payload, &index, 4);
	memcpy(payload + 4, &error, 4);
	put(MSG_failed, payload, 8 + snprintf(payload + 8, 256, "%s %.200s", what, object));
	put_pair(MSG_exited, 125 << 8, 0);
	session.finished = true;
}

static void session_ends(int status)
{
	session.ended = true;
	session.status = status;
	session.drain_until = now_ms() + DRAIN_MS;
	streams[0].closing = true;
	streams[0].window = 0; /* the host hears of the end, and needs not hear of this */
	streams[1].tty = false;
	for (int i = 1; i < 3; i++)
		streams[i].asleep = streams[i].moved = 0;
}

static _Noreturn void session_child(int *fds, unsigned count, int in, int out, int err)
{
	int stdio[3] = { in, out, err }, above = 3 + count + 8;

	for (unsigned i = 0; i < count; i++)
		fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, above);
	for (int i = 0; i < 3; i++)
		stdio[i] = fcntl(stdio[i], F_DUPFD_CLOEXEC, above);
	for (unsigned i = 0; i < count; i++)
		dup2(fds[i], 3 + i);
	for (int i = 0; i < 3; i++)
		dup2(stdio[i], i);
	forget_starter();
	_exit(obey(3, count));
}

static bool session_begins(const char *payload, uint32_t n)
{
	struct cursor a = { payload, payload + n };
	int fds[40], count = 0, local[2], console[2], in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2] = { -1, -1 };
	const char *path;
	uint64_t flags;
	uint32_t files;

	if (session.plan < 0 || session.stage0 || !take(&a, &flags, 8) || !take_string(&a, &path) || !take(&a, &files, 4) || files > 32)
		return nonsense("a session that cannot be");
	socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, local);
	fds[count++] = local[1];
	fds[count++] = session.plan;
	for (int i = *path ? -1 : 0; i < (int)files; i++) {
		if (i >= 0 && !take_string(&a, &path))
			return nonsense("a session without its files");
		if ((fds[count++] = open(path, O_RDONLY | O_CLOEXEC)) < 0)
			return session_fails(errno, "open", path), true;
		if (i < 0)
			session.cgroup = fds[count - 1];
	}
	if (flags & WANT_CONSOLE) {
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console);
		fds[count++] = console[1];
		r.other = console[0];
	} else if (flags & WANT_STDIO) {
		if (pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC))
			return session_fails(errno, "make", "pipes"), true;
		fchmod(in[0], 0666); /* the container's user, who may be somebody else, opens /dev/stdout */
		fchmod(out[1], 0666);
		fchmod(err[1], 0666);
		fcntl(in[1], F_SETFL, O_NONBLOCK);
		streams[0].to = in[1];
		streams[0].most = WINDOW;
		streams[1].from = out[0];
		streams[2].from = err[0];
	}
	int null = in[0] < 0 ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
	session.stage0 = fork();
	if (session.stage0 == 0)
		session_child(fds, count, null < 0 ? in[0] : null, null < 0 ? out[1] : null, null < 0 ? err[1] : null);
	if (session.stage0 < 0)
		return session_fails(errno, "fork", "init"), true;
	for (int i = 0; i < count; i++)
		if (fds[i] != session.cgroup)
			close(fds[i]);
	session.plan = -1;
	for (int *end = (int[]){ in[0], out[1], err[1], null }, i = 0; i < 4; i++)
		shut(end + i);
	r.local = local[0];
	return true;
}

static bool plan_part(const char *payload, uint32_t n)
{
	if (session.plan < 0)
		session.plan = memfd_create("plan", MFD_CLOEXEC);
	session.plan_bytes += n;
	if (session.stage0 || session.plan_bytes > PLAN_MAX_BYTES || write(session.plan, payload, n) != (ssize_t)n)
		return nonsense("a plan that is too large");
	return true;
}

/* A connection may hold several calls; and who connected to the port before may be gone without our having seen it. */
static void session_reset(void)
{
	r.out_at = r.out_end = 0; /* it was for that one */
	if (session.process && !session.ended)
		kill(session.process, SIGKILL);
	if (session.stage0 > 0)
		kill(session.stage0, SIGKILL);
	shut(&r.local);
	shut(&r.other);
	for (int i = 0; i < 3; i++) {
		shut(&streams[i].from);
		shut(&streams[i].to);
	}
	shut(&session.plan);
	shut(&session.cgroup);
	shut(&session.master);
	memset(&session, 0, sizeof session);
	session.plan = session.cgroup = session.master = -1;
	streams_begin();
	streams[0].sink = true;
	streams[0].to = LATER;
}

static void resize(void)
{
	if (session.master >= 0 && screen.ws_row && screen.ws_col)
		ioctl(session.master, TIOCSWINSZ, &screen);
}

static bool from_host(uint32_t type, const char *payload, uint32_t n)
{
	uint32_t head[2] = { type, n }, word[2] = { 0 };

	memcpy(word, payload, n < 8 ? n : 8);
	switch (type) {
	case MSG_hello:
		if (n != 8)
			return nonsense("a hello of a wrong length");
		session_reset();
		put(MSG_hello, payload, 8);
		return true;
	case MSG_part:
		if (session.stage0)
			session_reset();
		return plan_part(payload, n);
	case MSG_session: return session_begins(payload, n);
	case MSG_go:
	case MSG_start:
		/* Init reads them when it gets there; a socket holds both. */
		if (r.local >= 0 && (write(r.local, head, 8) < 0 || write(r.local, payload, n) < 0))
			return true;
		return true;
	case MSG_signal:
		if (session.process && !session.ended)
			kill(session.process, word[0]);
		return true;
	case MSG_resize:
		screen = (struct winsize){ .ws_row = word[0], .ws_col = word[1] };
		resize();
		return true;
	}
	return nonsense("a message of no known type");
}

static bool local_bytes(void *to, size_t n)
{
	for (char *p = to; n;) {
		ssize_t got = read(r.local, p, n);
		if (got <= 0)
			return false;
		p += got;
		n -= got;
	}
	return true;
}

/* From init to the host, as it is. */
static void local_message(void)
{
	uint32_t head[2];
	char *payload = r.out + r.out_end + 8;

	if (r.out_end > 4 * READ_MAX)
		return; /* next time */
	if (local_bytes(head, 8) && head[1] <= MESSAGE_MAX_BYTES && local_bytes(payload, head[1])) {
		memcpy(r.out + r.out_end, head, 8);
		r.out_end += 8 + head[1];
		if (head[0] == MSG_unshared)
			memcpy(&session.process, payload, 4);
		session.failed |= head[0] == MSG_failed;
		return;
	}
	shut(&r.local);
	if (session.process && !session.failed)
		put(MSG_running, "", 0);
	else if (!session.process && session.stage0 < 0)
		session_ends(session.stage0_status);
}

static void console_arrives(void)
{
	char control[CMSG_SPACE(sizeof(int))], text[64];
	struct iovec v = { text, sizeof text };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };

	ssize_t got = recvmsg(r.other, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got > 0 && CMSG_FIRSTHDR(&m)) {
		memcpy(&session.master, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof session.master);
		fcntl(session.master, F_SETFL, O_NONBLOCK);
		streams[0].to = fcntl(session.master, F_DUPFD_CLOEXEC, 3);
		streams[0].most = WINDOW;
		streams[1].from = fcntl(session.master, F_DUPFD_CLOEXEC, 3);
		streams[1].tty = !session.ended;
		resize();
	}
	shut(&r.other);
}

/* Stage 0 leaves as soon as it has cloned; its status counts only where it has not. */
static void session_reaps(void)
{
	struct signalfd_siginfo info;
	int status;
	pid_t pid;

	while (read(r.signals, &info, sizeof info) == sizeof info)
		;
	if (session.stage0 > 0 && waitpid(session.stage0, &status, WNOHANG) == session.stage0) {
		session.stage0 = -1;
		session.stage0_status = status;
		if (r.local < 0 && !session.process)
			session_ends(status);
	}
	while (session.process && (pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (pid == session.process && !session.ended)
			session_ends(status);
}

static uint32_t oom_kills(void)
{
	char text[512] = "", *at;
	int fd = session.cgroup < 0 ? -1 : openat(session.cgroup, "memory.events", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
		text[0] = 0;
	close(fd);
	at = strstr(text, "oom_kill ");
	return at ? strtoul(at + 9, NULL, 10) : 0;
}

static void session_collects(void)
{
	if (!session.ended || session.finished || r.local >= 0)
		return;
	for (int i = 1, waiting = 0; i < 3; i++)
		if (streams[i].from >= 0 && streams[i].moved < DRAIN_BYTES &&
		    (ioctl(streams[i].from, FIONREAD, &waiting) < 0 || waiting || now_ms() < session.drain_until))
			return;
	if (session.cgroup >= 0)
		sync(); /* the machine may be gone with its first process */
	put_pair(MSG_exited, session.status, oom_kills());
	session.finished = true;
}

static _Noreturn void serve(int port)
{
	struct pollfd p[POLLED], connected = { .fd = port };
	sigset_t child;

	/* The driver hands out bytes at once, and leaves the word that somebody is connected to a thread of its own. Until
	 * then an answer cannot be sent, and the end of the bytes looks like the end of the connection. */
	for (int ms = 0; ms < CONNECT_MS && poll(&connected, 1, 0) > 0 && connected.revents & POLLHUP; ms++)
		usleep(1000);

	signal(SIGPIPE, SIG_IGN); /* a program may close its stdin, init may be gone: neither is our end */
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	relay_begin(port, -1);
	r.signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	session.plan = session.cgroup = session.master = -1;
	session_reset();
	message_taken = from_host;
	collect = session_collects;
	for (;;) {
		relay_turn(p, session.ended && !session.finished ? 20 : -1);
		if (r.gone)
			break;
		if (p[SIGNALS].revents)
			session_reaps();
		if (p[LOCAL].revents)
			local_message();
		if (p[OTHER].revents)
			console_arrives();
		/* A tty's input ends with its line: the master goes, and the container hears SIGHUP. */
		if (session.master >= 0 && streams[0].to == -1 && !session.ended) {
			shut(&streams[1].from);
			shut(&session.master);
		}
	}
	if (r.nonsense)
		dprintf(2, "agent: the host sent %s\n", r.nonsense);
	session_reset();
	_exit(r.nonsense ? 1 : 0);
}

static _Noreturn void agent_dies(const char *what, const char *object)
{
	dprintf(2, "agent: %s %s: %s\n", what, object, strerror(errno));
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static void mount_at(const char *type, const char *target, const char *data)
{
	if (mkdir(target, 0755) < 0 && errno != EEXIST)
		agent_dies("make", target);
	if (mount(type, target, type, MS_NOSUID | MS_NODEV * (type[0] != 'd') | MS_NOEXEC * (type[0] != 't'), data) < 0)
		agent_dies("mount", target);
}

/* /m/list names the modules in the order in which they load. What cannot be loaded may not be needed. */
static void load_modules(void)
{
	FILE *list = fopen("/m/list", "re");
	char name[NAME_MAX], path[NAME_MAX + 8];

	while (list && fscanf(list, "%200s", name) == 1) {
		snprintf(path, sizeof path, "/m/%s", name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			dprintf(2, "agent: load %s: %s\n", name, strerror(errno));
		close(fd);
		unlink(path); /* its memory */
	}
	if (list)
		fclose(list);
}

/* pivot_root(2) does not work in the kernel's first root, so ours is a tmpfs moved on top of it. */
static void own_root(void)
{
	mount_at("tmpfs", "/new", "mode=0755");
	for (const char **name = (const char *[]){ "/new/run", "/new/tmp", "/new/images", NULL }; *name; name++)
		mkdir(*name, 0755);
	mount_at("devtmpfs", "/new/dev", NULL);
	mount_at("proc", "/new/proc", NULL);
	mount_at("sysfs", "/new/sys", NULL);
	mount_at("cgroup2", "/new/sys/fs/cgroup", NULL);
	if (chdir("/new") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		agent_dies("make", "the root");
}

static int open_port(int i)
{
	static int device; /* its number among the virtio devices, which is the machine type's choice */
	char path[32];

	/* The driver makes them one by one, from its own thread. */
	for (int tries = 0; tries < 5000; tries++) {
		for (int n = i ? device : 0; n <= (i ? device : 15); n++) {
			snprintf(path, sizeof path, "/dev/vport%dp%d", n, i + 1);
			int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
			if (fd >= 0)
				return device = n, fd;
		}
		usleep(1000);
	}
	agent_dies("open", path);
}

static _Noreturn void agent(void)
{
	int ports[MAX_PORTS], epoll = epoll_create1(EPOLL_CLOEXEC);
	pid_t sessions[MAX_PORTS] = { 0 };
	bool drained[MAX_PORTS];
	const char *wanted = getenv("ports");
	int count = wanted ? atoi(wanted) : 1;
	sigset_t child;

	load_modules();
	own_root();
	int console = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
	for (int fd = 0; fd < 3; fd++)
		dup2(console, fd);
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 1048576, 1048576 });
	setrlimit(RLIMIT_NPROC, &(struct rlimit){ RLIM_INFINITY, RLIM_INFINITY });
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	int signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	epoll_ctl(epoll, EPOLL_CTL_ADD, signals, &(struct epoll_event){ EPOLLIN, { .u32 = MAX_PORTS } });
	if (count > MAX_PORTS)
		count = MAX_PORTS;
	memset(drained, true, sizeof drained);
	/* Edge-triggered: a port to which nobody is connected hangs up all the time. It can be read all the time too, for
	 * the end of file: after a session that has read up to there, only bytes start another. */
	for (int i = 0; i < count; i++) {
		ports[i] = open_port(i);
		epoll_ctl(epoll, EPOLL_CTL_ADD, ports[i], &(struct epoll_event){ EPOLLIN | EPOLLET, { .u32 = i } });
	}
	for (;;) {
		struct signalfd_siginfo info;
		struct epoll_event event;

		if (epoll_wait(epoll, &event, 1, -1) != 1)
			continue;
		if (event.data.u32 < (unsigned)count) {
			int i = event.data.u32;
			bool over = event.events & EPOLLHUP && drained[i];
			drained[i] = false;
			if (!(event.events & EPOLLIN) || over || sessions[i])
				continue;
			pid_t pid = fork();
			if (pid == 0)
				serve(ports[i]);
			if (pid < 0)
				continue; /* the host asks again, or gives up */
			sessions[i] = pid;
			epoll_ctl(epoll, EPOLL_CTL_DEL, ports[i], NULL);
			continue;
		}
		while (read(signals, &info, sizeof info) == sizeof info)
			;
		int status;
		for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
			for (int i = 0; i < count; i++)
				if (sessions[i] == pid) {
					sessions[i] = 0;
					drained[i] = status == 0;
					epoll_ctl(epoll, EPOLL_CTL_ADD, ports[i], &(struct epoll_event){ EPOLLIN | EPOLLET, { .u32 = i } });
				}
	}
}
