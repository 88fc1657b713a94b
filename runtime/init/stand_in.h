/* The stand-in: what a machine's container is on the host. A process with the container's pid, signals, stdio and exit
 * status, which passes them on to and from the process in the guest. For the first process it is the parent of the
 * machine too: when it dies, of whatever, the machine dies with it.
 *
 * It speaks with a hostile guest, so it gives up all rights first, and holds no more than relay.h grants.
 */
#pragma once
#include <termios.h>

#include "relay.h"

static struct {
	int listener, oom;
	pid_t machine;
	bool tty, resized, exited, running;
	uint64_t signals;
	int status;
} self;

static int parent_pipe = -1; /* of the machine: hangs up when the stand-in is gone */

/* The dialogue goes to Python, whoever is connected; numbers of the guest's processes stay numbers. */
static bool from_guest(uint32_t type, const char *payload, uint32_t n)
{
	uint32_t words[2];

	switch (type) {
	case MSG_unshared:
	case MSG_ready:
	case MSG_failed:
	case MSG_data:
		if (self.running || r.local < 0)
			return !self.running || nonsense("a message out of order");
		channel = r.local;
		send_message(type, payload, n);
		return true;
	case MSG_running:
		self.running = true;
		shut(&r.local);
		shut(&self.listener);
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
			put(MSG_signal, &n, 4);
	self.signals = 0;
	if (self.resized && ioctl(0, TIOCGWINSZ, &size) == 0)
		put_pair(MSG_resize, size.ws_row, size.ws_col);
	self.resized = false;
}

static void stand_in_signals(void)
{
	struct signalfd_siginfo info;

	while (read(r.signals, &info, sizeof info) == sizeof info)
		if (info.ssi_signo == SIGCHLD) {
			if (self.machine && waitpid(self.machine, NULL, WNOHANG) == self.machine)
				r.gone = true;
		} else if (info.ssi_signo == SIGWINCH && self.tty) {
			self.resized = true;
		} else {
			self.signals |= 1ull << (info.ssi_signo - 1);
		}
}

/* From Python to the guest, as it is. At the end of it, whoever connects next goes on. */
static void python_message(void)
{
	uint32_t head[2];
	char *payload = r.out + r.out_end + 8;

	if (local_bytes(head, 8) && head[1] <= MESSAGE_MAX_BYTES && local_bytes(payload, head[1])) {
		memcpy(r.out + r.out_end, head, 8);
		r.out_end += 8 + head[1];
		return;
	}
	shut(&r.local);
	r.other = self.listener;
}

/* As the container's process ended. */
static _Noreturn void end_like(int status)
{
	sigset_t all;

	if (WIFSIGNALED(status)) {
		int n = WTERMSIG(status);
		setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
		signal(n, SIG_DFL);
		sigfillset(&all);
		sigprocmask(SIG_UNBLOCK, &all, NULL);
		kill(getpid(), n);
		_exit(128 + n);
	}
	_exit(WEXITSTATUS(status));
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
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	r.signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	/* Python may have gone already, and nobody is to be interrupted by that. */
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
	streams[0].from = 0;
	for (int i = 1; i < 3; i++) {
		streams[i].sink = true;
		streams[i].to = i;
	}
	message_taken = from_guest;
	collect = stand_in_collects;
	send_message(MSG_ready, NULL, 0);
	while (!(self.exited && flushed())) {
		relay_turn(p, -1);
		if (p[SIGNALS].revents)
			stand_in_signals();
		if (p[LOCAL].revents)
			python_message();
		if (p[OTHER].revents) {
			r.other = -1;
			r.local = accept4(self.listener, NULL, NULL, SOCK_CLOEXEC);
		}
		if (r.gone && !self.exited)
			end_like(SIGKILL); /* the machine is gone, and the process with it */
		if (r.gone)
			r.port = -1;
	}
	end_like(self.status);
}

/* The machine goes on with the plan; the container's process on this side stays here. */
static void op_stand_in(struct cursor *a)
{
	int port = u_(a);
	uint64_t listener = u_(a), oom = u_(a), flags = u_(a), uid = u_(a);
	struct clone_args args = { .flags = flags, .exit_signal = SIGCHLD };
	int begun[2], alive[2];
	char byte;

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
		close(begun[1]);
		close(alive[0]);
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
