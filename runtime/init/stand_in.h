/* The stand-in: what a machine's container is on the host. A process with the container's pid, signals, stdio and exit
 * status, which passes them on to and from the process in the guest. For the first process it is the parent of the
 * machine too: when it dies, of whatever, the machine dies with it.
 *
 * It speaks with a hostile guest, so it gives up all rights first, and holds no more than relay.h grants.
 */
#pragma once
#include <linux/audit.h>
#include <termios.h>

#include "relay.h"

#define GUEST_KILL 64 /* SIGKILL cannot be passed on; who can send it to us sends this one first */

static struct {
	int listener, oom;
	pid_t machine;
	bool tty, resized, exited, running;
	uint64_t signals;
	int status;
	pid_t pid;
} self;

static int parent_pipe = -1; /* of the machine: hangs up when the stand-in is gone */

/* What the guest has to say to Python is short and rare: a socket that has no room for it means a flood. */
static bool tell_python(uint32_t type, const char *payload, uint32_t n)
{
	uint32_t head[2] = { type, n };
	struct iovec v[2] = { { head, 8 }, { (void *)payload, n } };

	return n <= 1024 &&
	       (sendmsg(r.local, &(struct msghdr){ .msg_iov = v, .msg_iovlen = 2 }, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 ||
		errno != EAGAIN);
}

/* The dialogue goes to Python, whoever is connected; numbers of the guest's processes stay numbers. */
static bool from_guest(uint32_t type, const char *payload, uint32_t n)
{
	uint32_t words[2];

	if (self.exited)
		return nonsense("a message after the end");
	switch (type) {
	case MSG_unshared:
	case MSG_ready:
	case MSG_failed:
		if (self.running)
			return nonsense("a message out of order");
		return r.local < 0 || tell_python(type, payload, n) || nonsense("more messages than are read");
	case MSG_running:
		self.running = true;
		r.other = -1;
		shut(&self.listener); /* before whoever waits hears it: the next one finds it closed */
		shut(&r.local);
		return true;
	case MSG_exited:
		if (n != 8)
			return nonsense("an end of a wrong length");
		memcpy(words, payload, 8);
		self.status = words[0];
		self.exited = true;
		if (words[1] && self.oom >= 0 && write(self.oom, "1", 1) < 0)
			return true; /* it is for people to read */
		return true;
	}
	return nonsense("a message of no known type");
}

static void stand_in_collects(void)
{
	struct winsize size;

	for (uint32_t n = 1; n < 65; n++)
		if (self.signals >> (n - 1) & 1)
			put(MSG_signal, n == GUEST_KILL ? &(uint32_t){ SIGKILL } : &n, 4);
	self.signals = 0;
	if (self.resized && ioctl(0, TIOCGWINSZ, &size) == 0)
		put_pair(MSG_resize, size.ws_row, size.ws_col);
	self.resized = false;
}

static void machine_reaped(void)
{
	if (self.machine && waitpid(self.machine, NULL, WNOHANG) == self.machine)
		r.gone = true;
}

/* Says whether there was one for the process. */
static bool stand_in_signals(void)
{
	struct signalfd_siginfo info;
	bool any = false;

	while (read(r.signals, &info, sizeof info) == sizeof info)
		if (info.ssi_signo == SIGCHLD) {
			machine_reaped();
		} else if (info.ssi_signo == SIGWINCH && self.tty) {
			self.resized = true;
		} else if (info.ssi_code != SI_USER || (pid_t)info.ssi_pid != self.pid) {
			/* From ourselves come SIGPIPE and SIGXFSZ of a write here, which the process has not made. */
			self.signals |= 1ull << (info.ssi_signo - 1);
			any = true;
		}
	return any;
}

/* As the container's process ended. Only that signal is let through: others may wait. A process that ends by SIGSTOP
 * there is none, but the guest can say so. */
static _Noreturn void end_like(int status)
{
	sigset_t one;

	if (!WIFSIGNALED(status))
		_exit(WEXITSTATUS(status));
	sigemptyset(&one);
	sigaddset(&one, WTERMSIG(status));
	sigprocmask(SIG_UNBLOCK, &one, NULL);
	if (WTERMSIG(status) != SIGSTOP)
		kill(self.pid, WTERMSIG(status));
	_exit(128 + WTERMSIG(status));
}

/* From Python to the guest, as it is. At the end of it, whoever connects next goes on. It is waited for in the middle
 * of a message: nothing of the process runs yet. */
static void python_message(void)
{
	uint32_t head[2];
	char *payload = r.out + r.out_end + 8;

	if (r.out_end > 4 * READ_MAX)
		return; /* next time */
	if (local_bytes(head, 8) && head[1] <= MESSAGE_MAX_BYTES && local_bytes(payload, head[1])) {
		memcpy(r.out + r.out_end, head, 8);
		r.out_end += 8 + head[1];
		return;
	}
	shut(&r.local);
	r.other = self.listener;
	if (self.listener < 0 && !self.running)
		end_like(SIGKILL); /* nobody can start it any more: who could has died */
}

/* poll(2) promises little: another writer may fill the pipe first, and a write to a terminal returns when all is
 * written. So a pipe and a terminal are opened once more, for a description of our own that does not block. What cannot
 * be opened, a socket or a stranger's, is used as it is; a file has its position there. True: it does not block. */
static bool reopen(int fd)
{
	char path[32];
	struct stat st;

	if (fstat(fd, &st) < 0 || !(S_ISFIFO(st.st_mode) || isatty(fd)))
		return false;
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int own = open(path, (fcntl(fd, F_GETFL) & O_ACCMODE) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (own < 0)
		return false;
	dup2(own, fd);
	close(own);
	return true;
}

#if defined __x86_64__
#define OWN_ARCH AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define OWN_ARCH AUDIT_ARCH_AARCH64
#else
#define OWN_ARCH 0
#endif

/* All that the rest of this process's life takes, so that a fault here is no way into the host. */
static void confine(void)
{
	const struct { uint32_t number, argument, value; } allowed[] = { /* argument 6, which no call has: any */
		{ SYS_read, 6, 0 }, { SYS_write, 6, 0 }, { SYS_ppoll, 6, 0 }, { SYS_sendmsg, 6, 0 }, { SYS_close, 6, 0 },
#ifdef SYS_poll
		{ SYS_poll, 6, 0 },
#endif
		{ SYS_restart_syscall, 6, 0 }, /* poll, after SIGSTOP and SIGCONT */
		{ SYS_ioctl, 1, TIOCGWINSZ }, { SYS_accept4, 6, 0 }, { SYS_wait4, 2, WNOHANG },
		{ SYS_rt_sigprocmask, 6, 0 }, { SYS_kill, 0, self.pid }, { SYS_exit_group, 6, 0 },
	};
	struct sock_filter code[4 + 5 * sizeof allowed / sizeof *allowed], *at = code;
	struct sock_fprog filter = { sizeof code / sizeof *code, code };

	*at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	*at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 1, 0);
	*at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	for (unsigned i = 0; i < sizeof allowed / sizeof *allowed; i++) {
		uint32_t k = allowed[i].argument, n = k < 6 ? offsetof(struct seccomp_data, args) + 8 * k : 0;
		*at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
		*at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i].number, 0, 3);
		*at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, n);
		*at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | (k < 6 ? BPF_JEQ : BPF_JGE) | BPF_K, allowed[i].value, 0, 1);
		*at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	*at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
}

/* Descriptors from 3 on, but for these: the others are the machine's. */
static void keep_only(const int *keep, int count)
{
	for (unsigned from = 3, next;; from = next + 1) {
		next = ~0u;
		for (int i = 0; i < count; i++)
			if (keep[i] >= (int)from && (unsigned)keep[i] < next)
				next = keep[i];
		if (from < next)
			TRY(syscall(SYS_close_range, from, next == ~0u ? next : next - 1, 0));
		if (next == ~0u)
			return;
	}
}

/* The guest hung up, or it spoke nonsense, and the machine ends here and now. Whoever waits for a word hears why. */
static void guest_gone(void)
{
	uint32_t head[2] = { NO_OP, EPROTO };
	char text[200];

	if (r.nonsense && !self.exited) {
		memcpy(text, head, 8);
		int n = snprintf(text + 8, sizeof text - 8, "understand the guest, which sent %s", r.nonsense);
		if (r.local >= 0 && !self.running)
			tell_python(MSG_failed, text, 8 + n);
		end_like(SIGKILL);
	}
	if (!self.exited) { /* what it sent before is written yet */
		self.exited = true;
		self.status = SIGKILL;
	}
	r.port = -1;
}

static _Noreturn void stand_in(int port, uint64_t uid)
{
	struct pollfd p[POLLED];
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { 0 };
	struct termios raw;
	sigset_t all;

	relay_begin(port, channel);
	fcntl(port, F_SETFL, O_NONBLOCK);
	self.pid = getpid();
	memset(&all, 0xff, sizeof all); /* musl's sigfillset leaves some out */
	sigprocmask(SIG_BLOCK, &all, NULL);
	r.signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	TRY(chdir("/")); /* what is mounted where we were started can be unmounted */
	reopen(0);
	for (int i = 1; i < 3; i++) {
		streams[i].sink = true;
		streams[i].most = reopen(i) ? WINDOW : PIECE;
		streams[i].to = i;
	}
	streams[0].from = 0;
	TRY(syscall(SYS_setresgid, uid, uid, uid));
	TRY(syscall(SYS_setgroups, 0, NULL));
	TRY(syscall(SYS_setresuid, uid, uid, uid));
	TRY(syscall(SYS_capset, &head, none));
	TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	if (self.tty && tcgetattr(0, &raw) == 0) {
		cfmakeraw(&raw);
		tcsetattr(0, TCSANOW, &raw);
		self.resized = true;
	}
	message_taken = from_guest;
	collect = stand_in_collects;
	confine();
	machine_reaped(); /* from here on SIGCHLD says it */
	send_message(MSG_ready, NULL, 0);
	while (!(self.exited && flushed())) {
		relay_turn(p, -1);
		/* Where nobody reads the last output, a signal ends the wait for it. */
		if (p[SIGNALS].revents && stand_in_signals() && self.exited && !(p[TO + 1].revents | p[TO + 2].revents))
			break;
		if (p[LOCAL].revents)
			python_message();
		if (p[OTHER].revents) {
			r.local = accept4(self.listener, NULL, NULL, SOCK_CLOEXEC);
			r.other = r.local < 0 ? self.listener : -1;
		}
		if (r.gone)
			guest_gone();
	}
	end_like(self.status);
}

/* The machine goes on with the plan; the container's process on this side stays here. */
static void op_stand_in(struct cursor *a)
{
	int port = u_(a);
	uint64_t listener = u_(a), oom = u_(a), flags = u_(a), uid = u_(a);
	struct clone_args args = { .flags = flags, .exit_signal = SIGCHLD };
	int begun[2], alive[2], null;
	char byte;

	/* A descriptor of ours with the number of a closed stdin would be taken for it. */
	while ((null = TRY(open("/dev/null", O_RDWR | O_CLOEXEC))) < 3)
		;
	close(null);
	self.tty = u_(a);
	self.listener = listener == NO_FD ? -1 : (int)listener;
	self.oom = oom == NO_FD ? -1 : (int)oom;
	if (flags) {
		TRY(pipe2(begun, O_CLOEXEC));
		TRY(pipe2(alive, O_CLOEXEC));
		self.machine = TRY(syscall(SYS_clone3, &args, sizeof args));
		if (self.machine == 0) {
			close(alive[1]);
			parent_pipe = alive[0];
			close(port);
			return;
		}
		keep_only((int[]){ port, channel, self.listener, self.oom, begun[0], alive[1] }, 6);
		/* It hangs up when the machine's program runs, or when it has failed, and said so on the channel. */
		while (read(begun[0], &byte, 1) < 0 && errno == EINTR)
			;
		close(begun[0]);
	}
	stand_in(port, uid);
}

static void op_die_with_parent(void)
{
	struct pollfd p = { .fd = parent_pipe, .events = POLLIN };

	TRY(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
	if (poll(&p, 1, 0) != 0)
		_exit(125); /* it was gone before that call */
}
