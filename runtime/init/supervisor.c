/* The supervisor: the one small process that stays with each container.
 *
 * It holds the container's stdio (pipes, or the pty master), writes the log, serves attach clients, keeps the exit
 * status and, at the end, executes the teardown command. docs/design/supervisor.md has the protocols and the reasons.
 *
 * ---- Trust: the command line and the control socket are Python's. The container's output is hostile bytes: framed
 * ---- and logged, never interpreted. Attach clients have our uid, yet what they send is checked: nonsense costs that
 * ---- client its connection, never the supervisor.
 *
 * One process, one poll loop, static buffers, no allocation. Until "ready" errors go to Python by the control socket;
 * after it there is nobody to tell, so every failure has a defined, quiet outcome.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "supervisor_io.h"

/* What failed, in the control message 'E'; engine/supervise.py has the texts. */
enum { FAIL_FORK = 1, FAIL_PIPE = 2, FAIL_PID_FILE = 3, FAIL_EXEC = 4, FAIL_NOT_CHILD = 5, FAIL_LOG = 6 };

static char *exit_name, *pid_name, **child_argv, **teardown_argv;
static int control, signals, oom_score;
static pid_t stage0, container;
static int stage0_status = -1, started, status, recorded;

static void close_from(unsigned first)
{
	if (syscall(SYS_close_range, first, ~0U, 0) == 0) /* Linux 5.9; before it, each number up to the limit */
		return;
	for (long fd = first, end = sysconf(_SC_OPEN_MAX); fd < end; fd++)
		close((int)fd);
}

static void tell(uint8_t type, uint32_t a, uint32_t b)
{
	struct { uint8_t type; uint32_t a, b; } __attribute__((packed)) message = { type, htole32(a), htole32(b) };

	(void)!send(control, &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static _Noreturn void fail(int what)
{
	tell('E', (uint32_t)errno, (uint32_t)what);
	_exit(1);
}

/* Readers see the old text or the new one, never a part: temporary name, rename. After a power failure it has to be
 * readable only if it is durable; pids mean nothing by then, and a flush costs a start several milliseconds. */
static int write_file(long long dir, const char *name, const char *text, int durable)
{
	char temporary[300];
	int fd, bad;

	snprintf(temporary, sizeof temporary, ".%s.tmp", name);
	fd = openat((int)dir, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	bad = write_all(fd, text, strlen(text)) | (durable ? fsync(fd) : 0) | close(fd);
	return bad ? -1 : renameat((int)dir, temporary, (int)dir, name);
}

/* proc(5): field 22 of stat, in ticks since boot. Field 2, the name, may hold anything: count from its last ')'. */
static unsigned long long start_time(pid_t pid)
{
	char text[1024], *at;
	int fd, field = 2;
	ssize_t n;

	snprintf(text, sizeof text, "/proc/%d/stat", pid);
	fd = open(text, O_RDONLY | O_CLOEXEC);
	n = read(fd, text, sizeof text - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	for (at = strrchr(text, ')'); at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

static int write_pid_file(void)
{
	char text[256];
	int n = sprintf(text, "{\"version\":1,\"pid\":%d,\"start_time\":%llu,", getpid(), start_time(getpid()));

	if (container)
		sprintf(text + n, "\"container_pid\":%d,\"container_start_time\":%llu}\n", container, start_time(container));
	else
		sprintf(text + n, "\"container_pid\":null,\"container_start_time\":null}\n");
	return write_file(o.pid_dir, pid_name, text, 0);
}

/* ---------------------------------------------------------------- processes */

/* By the system call: the C library keeps 32 to 34 for itself, and a caller's "ignored" would stay. */
static void signal_all(unsigned long handler)
{
	unsigned long action[8] = { handler };

	for (int n = 1; n < 65; n++)
		syscall(SYS_rt_sigaction, n, action, NULL, 8);
}

static void signals_default(void)
{
	uint64_t none = 0;

	signal_all(1); /* ignoring discards: else a SIGINT of long ago would end us when it is unblocked */
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none);
	signal_all(0);
}

static int oom_adjust(const char *value)
{
	char text[16] = "0";
	int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);

	if (value)
		(void)!write(fd, value, strlen(value));
	else
		(void)!read(fd, text, sizeof text - 1);
	close(fd);
	return atoi(text);
}

static _Noreturn void child_main(int in, int out, int err, int report)
{
	int above = (int)(o.last + 16 > o.child_base + o.child_count ? o.last + 16 : o.child_base + o.child_count);
	int program = fcntl((int)o.exec, F_DUPFD_CLOEXEC, above), number;

	report = fcntl(report, F_DUPFD_CLOEXEC, above);
	dup2(in, 0);
	dup2(out, 1);
	dup2(err, 2);
	/* In rising order, and base < first: no source is overwritten before it has been copied. */
	for (int i = 0; i < o.child_count; i++)
		dup2((int)o.child_first + i, (int)o.child_base + i);
	for (int fd = 3; fd < above; fd++)
		if (fd < o.child_base || fd >= o.child_base + o.child_count)
			close(fd);
	signals_default();
	syscall(SYS_execveat, program, "", child_argv, environ, AT_EMPTY_PATH);
	number = errno;
	(void)!write(report, &number, sizeof number);
	_exit(127);
}

static void child_start(void)
{
	int in[2] = { 0, -1 }, out[2] = { -1, 1 }, err[2] = { -1, 2 }, report[2], number;

	if (pipe2(report, O_CLOEXEC) < 0 || (!tty && o.want_stdin && pipe2(in, O_CLOEXEC) < 0)
	    || (!tty && (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)))
		fail(FAIL_PIPE);
	if (!tty) {
		/* The container's user, who may be somebody else, opens /dev/stdout; nobody reaches these inodes but
		 * by /proc/PID/fd, which has an access check of its own. */
		fchmod(out[1], 0666);
		fchmod(err[1], 0666);
		fcntl(out[0], F_SETFL, O_NONBLOCK);
		fcntl(err[0], F_SETFL, O_NONBLOCK);
	}
	if (in[1] >= 0) {
		fchmod(in[0], 0666);
		fcntl(in[1], F_SETFL, O_NONBLOCK);
	}
	stage0 = fork();
	if (stage0 < 0)
		fail(FAIL_FORK);
	if (stage0 == 0)
		child_main(in[0], out[1], err[1], report[1]);
	close(report[1]);
	if (in[1] >= 0)
		close(in[0]);
	if (!tty) {
		close(out[1]);
		close(err[1]);
	}
	for (int i = 0; i < o.child_count; i++)
		close((int)o.child_first + i);
	close((int)o.exec);
	if (read(report[0], &number, sizeof number) == sizeof number) {
		errno = number;
		fail(FAIL_EXEC);
	}
	close(report[0]);
	in_fd = in[1];
	streams[0].fd = out[0];
	streams[1].fd = err[0];
}

static void container_ended(int wait_status)
{
	exited = 1;
	status = wait_status;
	drain_until = now_ms() + DRAIN_MS;
	for (struct stream *s = streams; s < streams + 2; s++)
		ioctl(s->fd, FIONREAD, &s->owed);
	in_eof = 1;
	in_start = in_end = 0;
	in_eot = 0;
	hangup_until = 0;
	close_fd(&in_fd);
}

/* Before "started" only stage 0 is reaped: the container's first process, its sibling by CLONE_PARENT, has to keep
 * its status until we know which one it is. */
static void reap(void)
{
	int wait_status;
	pid_t pid;

	if (!started && stage0_status < 0 && waitpid(stage0, &wait_status, WNOHANG) == stage0)
		stage0_status = wait_status;
	while (started && (pid = waitpid(-1, &wait_status, WNOHANG)) > 0)
		if (pid == container && !exited)
			container_ended(wait_status);
}

/* Ends every child, known or not, by /proc/PID/task/TID/children, which is read again after each death: stage 0 may
 * have cloned in between. They are unreaped, so no pid can have been used again. */
static void kill_children(void)
{
	char path[64], text[4096];

	snprintf(path, sizeof path, "/proc/self/task/%d/children", getpid());
	do {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = read(fd, text, sizeof text - 1);

		close(fd);
		text[n > 0 ? n : 0] = 0;
		for (char *at = text, *end; *at; at = end) {
			long pid = strtol(at, &end, 10);

			if (pid < 2)
				break;
			kill((pid_t)pid, SIGKILL);
		}
		if (fd < 0 && stage0_status < 0) /* no CONFIG_PROC_CHILDREN: init ends by itself when its channel does */
			kill(stage0, SIGKILL);
	} while (waitpid(-1, NULL, 0) > 0);
}

static _Noreturn void teardown(void)
{
	char score[16];

	if (!teardown_argv[0])
		_exit(0);
	snprintf(score, sizeof score, "%d", oom_score);
	oom_adjust(score);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	signals_default();
	close_from(3);
	execv(teardown_argv[0], teardown_argv);
	_exit(1);
}

static void control_read(void)
{
	struct { uint8_t type; uint32_t pid; } __attribute__((packed)) message;
	ssize_t n = recv(control, &message, sizeof message, MSG_DONTWAIT);
	siginfo_t info;

	if (n < 0 && errno == EAGAIN)
		return;
	if (n == sizeof message && message.type == 'A') {
		kill_children();
		_exit(0); /* Python is there, and cleans up itself */
	}
	if (n == sizeof message && message.type == 'S' && !started) {
		pid_t pid = (pid_t)le32toh(message.pid);

		if (pid < 2 || ((pid != stage0 || stage0_status < 0) && waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0)) {
			tell('E', ECHILD, FAIL_NOT_CHILD);
			return;
		}
		container = pid;
		started = 1;
		if (write_pid_file() < 0)
			tell('E', (uint32_t)errno, FAIL_PID_FILE);
		else
			tell('K', (uint32_t)container, 0);
		if (pid == stage0 && stage0_status >= 0)
			container_ended(stage0_status);
		reap();
		return;
	}
	close_fd(&control);
	if (!started) { /* the command died before it had named the container: nothing may stay */
		kill_children();
		teardown();
	}
}

static void signal_read(void)
{
	struct signalfd_siginfo info;

	while (read(signals, &info, sizeof info) == sizeof info)
		if (info.ssi_signo == SIGTERM && started && !exited)
			kill(container, SIGTERM); /* unreaped, so the pid is still its own */
	reap();
}

/* After the container's end: drain, record, tell, and go. Returns while there is something to wait for. */
static void finish_step(void)
{
	int late = now_ms() >= drain_until;
	int drained = stream_done(&streams[0]) && stream_done(&streams[1]) && (console < 0 || late);
	uint32_t signal = WIFSIGNALED(status) ? (uint32_t)WTERMSIG(status) : 0;
	uint32_t code = signal ? 128 + signal : (uint32_t)WEXITSTATUS(status), words[2] = { htole32(code), htole32(signal) };
	char text[200], name[16] = "null";

	if (!recorded && (drained || late)) {
		if (signal)
			sprintf(name, "%u", signal);
		sprintf(text, "{\"version\":1,\"status\":%u,\"signal\":%s,\"finished\":\"%s\",\"log_dropped\":%lu}\n", code, name, stamp(),
			log_dropped);
		write_file(o.exit_dir, exit_name, text, 1);
		recorded = 1;
	}
	if (!drained)
		return;
	if (linger_until == 0) {
		stream_close(&streams[0]);
		stream_close(&streams[1]);
		close_fd(&listener);
		linger_until = now_ms() + LINGER_MS;
		broadcast(S_EXIT, words, sizeof words);
	}
	if (owner->fd >= 0)
		return; /* the foreground command tears down itself, and says so, or dies */
	for (struct client *c = clients; c < clients + CLIENTS; c++)
		if (c->fd >= 0 && c->greeted && c->pos < head && now_ms() < linger_until)
			return;
	if (done)
		_exit(0);
	teardown();
}

static int timeout_ms(void)
{
	long long at = !exited ? hangup_until : linger_until ? linger_until : drain_until, left = at - now_ms();

	if (at == 0 || (linger_until && owner->fd >= 0))
		return -1;
	return left < 1 ? 20 : (int)left;
}

static _Noreturn void loop(void)
{
	enum { SIGNALS, CONTROL, LISTENER, CONSOLE, STDIN, OUT, CLIENT = OUT + 2, COUNT = CLIENT + CLIENTS };

	for (;;) {
		struct pollfd p[COUNT];
		int pending, wait, timeout;

		if (exited)
			finish_step();
		if (in_eof && in_start == in_end)
			stdin_write();
		if (hangup_until && now_ms() >= hangup_until)
			hangup_until = 0;
		pending = in_start < in_end || in_eot;
		ring_rewind();
		wait = must_wait();
		timeout = timeout_ms();
		if (wait > 0 && (timeout < 0 || wait < timeout))
			timeout = wait;
		p[SIGNALS] = (struct pollfd){ signals, POLLIN, 0 };
		p[CONTROL] = (struct pollfd){ control, POLLIN, 0 };
		p[LISTENER] = (struct pollfd){ listener, POLLIN, 0 };
		p[CONSOLE] = (struct pollfd){ console, POLLIN, 0 };
		/* A pipe is watched without data as well, for POLLERR: its reader has gone. */
		p[STDIN] = (struct pollfd){ !tty || (pending && !hangup_until) ? in_fd : -1, pending ? POLLOUT : 0, 0 };
		for (int i = 0; i < 2; i++)
			p[OUT + i] = (struct pollfd){ wait == 0 && !hangup_until ? streams[i].fd : -1, POLLIN, 0 };
		for (int i = 0; i < CLIENTS; i++) {
			struct client *c = &clients[i];
			int output = c->greeted && c->pos < head;

			p[CLIENT + i] = (struct pollfd){ c->fd, (short)((stalled(c) ? 0 : POLLIN) | (output ? POLLOUT : 0)), 0 };
		}
		if (poll(p, COUNT, timeout) < 0)
			continue;

		if (p[STDIN].revents & POLLERR && !tty)
			stdin_close();
		else if (p[STDIN].revents)
			stdin_write();
		for (int i = 0; i < 2; i++) {
			streams[i].quiet = p[OUT + i].fd >= 0 && !p[OUT + i].revents;
			if (p[OUT + i].revents && must_wait() == 0)
				stream_read(&streams[i]);
		}
		for (int i = 0; i < CLIENTS; i++) {
			struct client *c = &clients[i];

			if (p[CLIENT + i].revents & POLLOUT)
				client_write(c);
			if (c->fd < 0)
				continue;
			if (p[CLIENT + i].events & POLLIN && p[CLIENT + i].revents & (POLLIN | POLLHUP | POLLERR))
				client_read(c);
			else if (p[CLIENT + i].revents & (POLLHUP | POLLERR))
				drop(c);
		}
		if (p[CONSOLE].revents)
			console_read();
		if (p[LISTENER].revents)
			client_accept();
		if (p[CONTROL].revents)
			control_read();
		if (p[SIGNALS].revents)
			signal_read();
	}
}

/* NUMBERS EXIT-NAME PID-NAME LOG-NAME CHILD... '' TEARDOWN... */
static void arguments(int argc, char **argv)
{
	long long *number = (long long *)&o, *end = number + sizeof o / sizeof *number;
	char *at = argc > 4 ? argv[1] : "";

	for (; number < end; number++, at++) {
		char *from = at;

		*number = strtoll(from, &at, 10);
		if (at == from || *at != (number + 1 < end ? ',' : 0))
			_exit(2);
	}
	if (o.version != VERSION || o.args < 1 || o.args > argc - 6 || o.log_files < 1 || o.child_base >= o.child_first)
		_exit(2);
	exit_name = argv[2];
	pid_name = argv[3];
	log_name = argv[4];
	child_argv = argv + 5;
	child_argv[o.args] = NULL; /* in place of the empty argument */
	teardown_argv = child_argv + o.args + 1;
	control = (int)o.control;
	listener = (int)o.listener;
	console = (int)o.console;
	tty = console >= 0;
}

int main(int argc, char **argv)
{
	sigset_t mask;
	pid_t pid;

	arguments(argc, argv);
	close_from((unsigned)o.last + 1);
	for (int fd = 3; fd <= o.last; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	pid = fork();
	if (pid < 0)
		fail(FAIL_FORK);
	if (pid > 0)
		_exit(0); /* Python waits for this one; the daemon's parent is the host's reaper */

	setsid();
	(void)!chdir("/");
	prctl(PR_SET_NAME, "pycontain-super");
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	signals_default(); /* a caller that ignores SIGCHLD would have our children's status thrown away */
	sigfillset(&mask);
	for (int i = 0; i < 6; i++)
		sigdelset(&mask, (int[]){ SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS }[i]);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigaddset(&mask, SIGTERM);
	signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
	for (struct client *c = clients; c < clients + CLIENTS; c++)
		c->fd = -1;
	if (o.owner >= 0) { /* it sees the output from the first byte, before its own hello has come */
		*owner = (struct client){ .fd = (int)o.owner, .greeted = 1, .flags = 0 };
		send_hello(owner);
	}
	if (o.log_dir >= 0 && log_open() < 0)
		fail(FAIL_LOG);
	if (write_pid_file() < 0)
		fail(FAIL_PID_FILE);
	child_start();
	/* Only now, so that the container inherits neither. -999, not -1000: the last to go, but not never. */
	oom_score = oom_adjust(NULL);
	oom_adjust("-999");
	prctl(PR_SET_DUMPABLE, 0);
	tell('R', (uint32_t)getpid(), (uint32_t)stage0);
	loop();
}
