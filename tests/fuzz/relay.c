/*
 * libFuzzer on both ends of a machine's port (runtime/init/relay.h), built with ASan and UBSan.
 *
 *   stand_in  the bytes are a hostile guest's, the functions the host's
 *   agent     the bytes are the host's, which is trusted, but may be cut off anywhere (-DGUEST)
 *
 * An input is three bytes that say how, and messages: in pieces of what size they come, how often all of them come (so
 * that windows fill up), and what the world is like. After every turn the bounds hold; what is sent is messages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

enum { FULL = 1, DEAF = 2, INPUT = 4, NO_PYTHON = 8 }; /* nobody reads the output; nor the port; stdin never ends */

/* What a session would do to the world outside of this process. */
static pid_t no_fork(void)
{
	return 0x3fffffff; /* above any pid_max */
}

static int no_kill(pid_t pid, int sig)
{
	(void)pid, (void)sig;
	return 0;
}

static void no_sync(void)
{
}

static int null_open(const char *path, int flags, ...)
{
	static int (*const really)(const char *, int, ...) = open;

	if (path[0] == '/')
		return really("/dev/null", flags & (O_ACCMODE | O_CLOEXEC));
	errno = ENOENT;
	return -1;
}

#define fork no_fork
#define kill no_kill
#define sync no_sync
#define open null_open
#define main init_main
#pragma clang diagnostic ignored "-Wunused-function"
#include "../../runtime/init/init.c"
#undef main
#undef open

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static void require(bool condition)
{
	if (!condition)
		abort();
}

static void bounds(void)
{
	require(r.in_end <= sizeof r.in && r.out_at <= r.out_end && r.out_end <= sizeof r.out);
	for (struct stream *s = streams; s < streams + 3; s++) {
		require(s->window <= WINDOW && s->start <= s->end && s->end <= WINDOW);
		require(s->end - s->start + s->owed <= WINDOW);
	}
}

/* What our side says, in whatever pieces. */
static void hear(int peer)
{
	static struct { uint32_t have, left, head[2]; char bytes[1 << 17]; } h;

	if (peer < 0) {
		h.have = h.left = 0;
		return;
	}
	for (ssize_t n; (n = recv(peer, h.bytes, sizeof h.bytes, MSG_DONTWAIT)) > 0;)
		for (ssize_t at = 0; at < n;) {
			if (h.left) {
				uint32_t part = h.left < n - at ? h.left : n - at;
				h.left -= part;
				at += part;
				continue;
			}
			((char *)h.head)[h.have++] = h.bytes[at++];
			if (h.have < 8)
				continue;
			h.have = 0;
			h.left = h.head[1];
			require(h.head[0] >= 1 && h.head[0] <= 16 && h.head[1] <= MESSAGE_MAX_BYTES);
		}
}

static void turns(int peer, int how)
{
	struct pollfd p[POLLED];

	for (int i = 0; i < 64 && !r.gone; i++) {
		relay_turn(p, 0);
		bounds();
#ifdef GUEST
		if (p[SIGNALS].revents)
			session_reaps();
		if (p[LOCAL].revents)
			local_message();
		if (p[OTHER].revents)
			console_arrives();
#endif
		bounds();
		if (!(how & DEAF))
			hear(peer);
		if (!(p[PORT].revents & POLLIN))
			return;
	}
}

static void begin(int port, int how)
{
	int pipes[2], python[2];

	r.gone = false;
	r.nonsense = NULL;
	r.in_end = r.out_at = r.out_end = 0;
	relay_begin(port, -1);
#ifdef GUEST
	(void)pipes, (void)python, (void)how;
	session.process = session.stage0 = 0;
	session.plan = session.cgroup = session.master = -1;
	session_reset();
	message_taken = from_host;
	collect = session_collects;
#else
	memset(&self, 0, sizeof self);
	self.listener = self.oom = -1;
	require(socketpair(AF_UNIX, SOCK_STREAM, 0, python) == 0 && pipe(pipes) == 0);
	r.local = how & NO_PYTHON ? -1 : python[0];
	for (int i = 1; i < 3; i++) {
		streams[i].sink = true;
		streams[i].most = WINDOW;
		streams[i].to = how & FULL ? fcntl(pipes[1], F_DUPFD, 0) : open("/dev/null", O_WRONLY);
	}
	fcntl(pipes[1], F_SETFL, O_NONBLOCK);
	streams[0].from = how & INPUT ? open("/dev/zero", O_RDONLY) : -1;
	message_taken = from_guest;
	collect = stand_in_collects;
#endif
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int first;
	int ends[2];

	if (size < 3)
		return 0;
	signal(SIGPIPE, SIG_IGN);
	require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
	first = first ? first : ends[0];
	size_t piece = (size_t)1 << data[0] % 17, times = 1 + data[1] % 48;
	int how = data[2];

	hear(-1);
	begin(ends[0], how);
	data += 3;
	size -= 3;
	for (; times && !r.gone; times--)
		for (size_t at = 0; at < size && !r.gone;) {
			ssize_t put_ = write(ends[1], data + at, size - at < piece ? size - at : piece);
			at += put_ > 0 ? put_ : 0;
			turns(ends[1], how);
			if (put_ <= 0)
				break;
		}
	shutdown(ends[1], SHUT_WR);
	turns(ends[1], how);
	close_range(first, ~0u, 0); /* whatever was left open */
	return 0;
}

/* Most mutations leave no message: types and lengths are made what they could be. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	uint32_t head[2];

	size = LLVMFuzzerMutate(data, size, max_size);
	for (size_t at = 3; seed % 16 && at + 8 <= size; at += 8 + head[1]) {
		memcpy(head, data + at, 8);
		head[0] %= 18;
		if (head[1] > size - at - 8)
			head[1] = head[1] % 4 ? head[1] % 13 : size - at - 8;
		if (head[1] > size - at - 8)
			head[1] = size - at - 8;
		memcpy(data + at, head, 8);
		uint32_t stream = 0;
		if (head[0] >= MSG_stream && head[0] <= MSG_close && head[1] >= 4 && seed % 5) {
			memcpy(&stream, data + at + 8, 4);
			stream %= 4;
			memcpy(data + at + 8, &stream, 4);
		}
	}
	return size;
}
