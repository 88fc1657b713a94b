/* The supervisor's bytes: the log, the container's stdio, and the attach clients. Included by supervisor.c alone.
 *
 * Everything is non-blocking. Output goes into the log and, once, into a ring from which every client is served at its
 * own pace; input goes from the clients straight into one buffer. docs/design/supervisor.md has the protocol.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define VERSION 1
#define CLIENTS (1 + 16)       /* slot 0 is the owner's: the foreground command that started us */
#define READ_MAX 32768         /* bytes of output in a frame */
#define FRAME_MAX 65536        /* bytes that a client may put into a frame */
#define RING_SIZE (256 * 1024) /* output that an attach client may lag behind */
#define STDIN_SIZE (64 * 1024)
#define LINE_SIZE 16384        /* data of a log record; a longer line is split, its parts flagged P */
#define DRAIN_MS 500           /* how long a survivor may keep the output open after the container's end */
#define PATIENCE_MS 1000       /* how long in all an attach client may hold the output up before it is dropped */
#define LINGER_MS 1000         /* how long attach clients may take for the last output */
#define HANGUP_MS 200          /* how often a terminal that no process has open is looked at again */

/* Frames: u8 type, u32 length, payload; little endian. engine/attach.py has the same table, a test compares them. */
enum { C_HELLO = 1, C_STDIN = 2, C_STDIN_EOF = 3, C_RESIZE = 4, C_DETACH = 5, C_DONE = 6, C_CLOSE = 7 };
enum { S_HELLO = 129, S_STDOUT = 130, S_STDERR = 131, S_EXIT = 132, S_STDIN_CLOSED = 133, S_REFUSED = 134 };
enum { WANT_STDIN = 1, WANT_OUTPUT = 2 }; /* flags of the client's hello */
enum { HAS_TTY = 1, HAS_STDIN = 2 };      /* flags of ours */
enum { REFUSED_FULL = 1, REFUSED_VERSION = 2, REFUSED_PEER = 3 };

struct header { uint8_t type; uint32_t length; } __attribute__((packed));

static struct client {
	int fd; /* -1: a free slot */
	int greeted;
	uint32_t flags;
	uint64_t pos; /* the next byte of the ring to send */
	long long full_since, full_ms; /* when its part of the ring got full; how long it was, since it last was empty */
	struct { struct header header; uint8_t payload[8]; } __attribute__((packed)) frame;
	uint32_t have; /* bytes of it */
	uint32_t left; /* bytes of stdin data still to come */
} clients[CLIENTS], *const owner = clients;

static struct stream {
	int type, fd;
	int quiet;  /* the last poll found nothing to read */
	int owed;   /* bytes that were in the pipe when the container ended */
	long extra; /* bytes read after those */
	size_t have;
	char line[LINE_SIZE];
} streams[2] = { { .type = S_STDOUT, .fd = -1 }, { .type = S_STDERR, .fd = -1 } };

static struct { /* the first argument: these numbers in this order, separated by commas; a descriptor may be -1 */
	long long version, control, exec, exit_dir, pid_dir, log_dir, listener, owner, console;
	long long child_first, child_count, child_base, last, want_stdin, log_files, log_size, args;
} o;
static char *log_name;

static char ring[RING_SIZE] __attribute__((aligned(65536)));
static uint64_t head;
static char inbuf[STDIN_SIZE], scratch[READ_MAX], logbuf[65536];
static size_t in_start, in_end, log_have, log_lines;
static unsigned long log_dropped;
static long long log_size;
static int log_fd = -1, listener, console, in_fd = -1, in_eof; /* no more input comes */
static int in_eot;         /* a terminal is to be told so */
static int tty, exited, done; /* the container has ended; the owner has torn it down */
static long long drain_until, linger_until, hangup_until;
static struct winsize size;

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static const char *stamp(void)
{
	static char text[64];
	struct timespec t;
	struct tm tm;

	clock_gettime(CLOCK_REALTIME, &t);
	gmtime_r(&t.tv_sec, &tm);
	strftime(text, 32, "%Y-%m-%dT%H:%M:%S", &tm);
	sprintf(text + 19, ".%09uZ", (unsigned)t.tv_nsec % 1000000000);
	return text;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int write_all(int fd, const char *data, size_t n)
{
	for (ssize_t r; n > 0; data += r, n -= (size_t)r)
		if ((r = write(fd, data, n)) <= 0)
			return -1;
	return 0;
}

/* ---------------------------------------------------------------- log */

static int log_open(void)
{
	struct stat st = { 0 };

	log_fd = openat((int)o.log_dir, log_name,
			O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
	if (log_fd >= 0)
		fstat(log_fd, &st);
	log_size = st.st_size;
	return log_fd;
}

static void log_flush(void)
{
	if (log_have == 0)
		return;
	if ((log_fd < 0 && log_open() < 0) || write_all(log_fd, logbuf, log_have) < 0) {
		/* A full disk: no part of a record may stay, the next one would be glued to it. */
		(void)!ftruncate(log_fd, log_size);
		log_dropped += log_lines;
	} else {
		log_size += (long long)log_have;
	}
	log_have = log_lines = 0;
}

static void log_rotate(void)
{
	char from[300], to[300];

	log_flush();
	close_fd(&log_fd);
	if (o.log_files == 1)
		unlinkat((int)o.log_dir, log_name, 0);
	for (int i = (int)o.log_files - 1; i >= 1; i--) {
		snprintf(from, sizeof from, i == 1 ? "%s" : "%s.%d", log_name, i - 1);
		snprintf(to, sizeof to, "%s.%d", log_name, i);
		renameat((int)o.log_dir, from, (int)o.log_dir, to);
	}
	log_open();
}

static void log_record(struct stream *s, const char *time, char flag)
{
	long long need = (long long)s->have + 41, before = log_size + (long long)log_have;
	char *to;

	if (before > 0 && before + need > o.log_size)
		log_rotate();
	if (log_have + (size_t)need > sizeof logbuf)
		log_flush();
	to = logbuf + log_have; /* by hand: with printf, a container that writes many lines spends its time there */
	memcpy(to, time, 30);
	memcpy(to + 30, s->type == S_STDOUT ? " stdout ? " : " stderr ? ", 10);
	to[38] = flag;
	memcpy(to + 40, s->line, s->have);
	to[40 + s->have] = '\n';
	log_have += 41 + s->have;
	log_lines++;
	s->have = 0;
}

static void log_bytes(struct stream *s, const char *data, size_t n)
{
	const char *time = stamp(), *end = data + n;

	while (o.log_dir >= 0 && data < end) {
		size_t part = (size_t)(end - data), room = LINE_SIZE - s->have;
		const char *newline = memchr(data, '\n', part);

		if (newline)
			part = (size_t)(newline - data);
		if (part > room) {
			part = room;
			newline = NULL;
		}
		memcpy(s->line + s->have, data, part);
		s->have += part;
		data += part + (newline != NULL);
		if (newline)
			log_record(s, time, 'F');
		else if (s->have == LINE_SIZE && data < end)
			log_record(s, time, 'P');
	}
	log_flush();
}

/* ---------------------------------------------------------------- attach clients: what they get */

static int client_count(void)
{
	int n = 0;

	for (struct client *c = clients; c < clients + CLIENTS; c++)
		n += c->fd >= 0;
	return n;
}

static void drop(struct client *c)
{
	close_fd(&c->fd);
	/* As with a pipe: when the foreground command is gone, its container's stdin has ended. */
	if (c == owner)
		in_eof |= !tty;
	if (client_count() == 0) {
		madvise(ring, sizeof ring, MADV_DONTNEED); /* no memory for readers that left */
		head = 0;
	}
}

static void send_now(int fd, uint8_t type, uint32_t length, uint32_t a, uint32_t b)
{
	struct { struct header header; uint32_t a, b; } __attribute__((packed)) frame =
		{ { type, htole32(length) }, htole32(a), htole32(b) };

	/* The first bytes into an empty socket: they fit, or the peer has gone, which poll will say. */
	(void)!send(fd, &frame, sizeof frame.header + length, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void send_hello(struct client *c)
{
	send_now(c->fd, S_HELLO, 8, VERSION, (tty ? HAS_TTY : 0) | (o.want_stdin && !in_eof ? HAS_STDIN : 0));
}

static void client_write(struct client *c)
{
	while (c->fd >= 0 && c->greeted && c->pos < head) {
		size_t at = c->pos % RING_SIZE, n = (size_t)(head - c->pos);
		ssize_t r = send(c->fd, ring + at, n < RING_SIZE - at ? n : RING_SIZE - at, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (r < 0 && errno == EAGAIN)
			return;
		if (r < 0)
			drop(c);
		else
			c->pos += (uint64_t)r;
	}
}

static void ring_put(const void *data, size_t n)
{
	size_t at = head % RING_SIZE, first = n < RING_SIZE - at ? n : RING_SIZE - at;

	memcpy(ring + at, data, first);
	memcpy(ring, (const char *)data + first, n - first);
	head += n;
}

/* Nobody lags by more than the ring: must_wait() sees to it. */
static void broadcast(int type, const void *data, uint32_t n)
{
	struct header header = { (uint8_t)type, htole32(n) };
	uint64_t before = head;

	if (client_count() == 0)
		return;
	ring_put(&header, sizeof header);
	ring_put(data, n);
	for (struct client *c = clients; c < clients + CLIENTS; c++) {
		if (c != owner && type <= S_STDERR && !(c->flags & WANT_OUTPUT) && c->pos == before)
			c->pos = head; /* it waits for the end only */
		client_write(c);
	}
}

/* When everybody has read everything, start over with the ring's first pages, which are warm. */
static void ring_rewind(void)
{
	for (struct client *c = clients; c < clients + CLIENTS; c++)
		if (c->fd >= 0 && c->greeted && c->pos != head)
			return;
	for (struct client *c = clients; c < clients + CLIENTS; c++)
		c->pos = 0;
	head = 0;
}

/* Back-pressure: output is read only while every client has room for it (64 bytes stay for the last frames). The owner
 * may take its time, as the reader of a pipe may. The others have PATIENCE_MS in all before they have caught up again:
 * enough for one that works, and a stalled one stops the container for a second, once. Returns how many ms until the
 * next one is dropped: 0, nobody is waited for; -1, the owner is. */
static int must_wait(void)
{
	int wait = 0;

	for (struct client *c = clients; c < clients + CLIENTS; c++) {
		long long now = now_ms(), left;

		if (c->fd < 0 || !c->greeted)
			continue;
		if (c->full_since) {
			c->full_ms += now - c->full_since;
			c->full_since = 0;
		}
		if (c->pos == head)
			c->full_ms = 0;
		if (RING_SIZE - (head - c->pos) >= READ_MAX + 64)
			continue;
		left = PATIENCE_MS - c->full_ms;
		if (c != owner && left <= 0) {
			drop(c);
			continue;
		}
		c->full_since = now;
		if (c == owner)
			wait = wait ? wait : -1;
		else if (wait <= 0 || left < wait)
			wait = (int)left;
	}
	return wait;
}

/* ---------------------------------------------------------------- the container's stdio */

static void stream_close(struct stream *s)
{
	close_fd(&s->fd);
	if (s->have > 0) {
		log_record(s, stamp(), 'P'); /* a last line without newline stays without one */
		log_flush();
	}
}

static void stream_read(struct stream *s)
{
	ssize_t n = read(s->fd, scratch, sizeof scratch);

	if (n < 0 && errno == EAGAIN)
		return;
	/* A pty master says EIO while no process has the other side open; somebody may open /dev/console again. */
	if (n < 0 && tty && !exited) {
		hangup_until = now_ms() + HANGUP_MS;
		return;
	}
	if (n <= 0) {
		stream_close(s);
		return;
	}
	if (s->owed > 0)
		s->owed -= (int)n;
	else
		s->extra += exited ? n : 0;
	log_bytes(s, scratch, (size_t)n);
	broadcast(s->type, scratch, (uint32_t)n);
}

static int stream_done(const struct stream *s)
{
	return s->fd < 0 || (now_ms() >= drain_until && s->owed <= 0 && (s->quiet || s->extra > 1 << 20));
}

static void stdin_close(void)
{
	in_start = in_end = 0;
	in_eof = 1;
	if (in_fd >= 0)
		broadcast(S_STDIN_CLOSED, "", 0);
	close_fd(&in_fd);
}

static void stdin_write(void)
{
	if (in_start == in_end && in_eot) {
		inbuf[0] = 4; /* a terminal cannot be closed from this side; VEOF is how its user says the end */
		in_start = 0;
		in_end = 1;
		in_eot = 0;
	}
	if (in_start < in_end) {
		ssize_t r = write(in_fd, inbuf + in_start, in_end - in_start);

		if (r < 0 && errno == EAGAIN)
			return;
		in_start = r < 0 ? in_end : in_start + (size_t)r;
		if (r < 0 && !tty)
			in_eof = 1;
	}
	if (in_start == in_end)
		in_start = in_end = 0;
	if (in_start == in_end && in_eof && !tty)
		stdin_close();
}

static int stdin_takes(void)
{
	return !in_eof && (in_fd >= 0 || (tty && console >= 0 && o.want_stdin));
}

static size_t stdin_room(void)
{
	if (in_start > 0 && in_end == sizeof inbuf) {
		memmove(inbuf, inbuf + in_start, in_end -= in_start);
		in_start = 0;
	}
	return sizeof inbuf - in_end;
}

static void resize(void)
{
	if (tty && streams[0].fd >= 0 && size.ws_row && size.ws_col)
		ioctl(streams[0].fd, TIOCSWINSZ, &size); /* the kernel sends SIGWINCH to the foreground group */
}

/* init sends the pty master, in one message; whatever else is in it does not matter. */
static void console_read(void)
{
	char text[64];
	union { struct cmsghdr align; char space[CMSG_SPACE(sizeof(int))]; } rights;
	struct iovec part = { text, sizeof text };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = CMSG_LEN(sizeof(int)) };
	ssize_t n = recvmsg(console, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	int fd;

	if (n < 0 && errno == EAGAIN)
		return;
	close_fd(&console);
	if (n <= 0 || !c || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof fd))
		return;
	memcpy(&fd, CMSG_DATA(c), sizeof fd);
	if (!isatty(fd) || fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
		close(fd);
		return;
	}
	streams[0].fd = fd;
	if (o.want_stdin)
		in_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	resize();
}

/* ---------------------------------------------------------------- attach clients: what they send */

/* Nothing is taken from a client whose next bytes are stdin data that has no room. */
static int stalled(const struct client *c)
{
	return c->left > 0 && stdin_takes() && stdin_room() == 0;
}

static int frame_valid(const struct client *c, uint32_t n)
{
	uint8_t type = c->frame.header.type;

	if (type == C_HELLO || c->flags == 0)
		return type == C_HELLO && n == 8 && c->flags == 0; /* the hello, once, and first */
	switch (type) {
	case C_STDIN: return n > 0 && n <= FRAME_MAX && (c->flags & WANT_STDIN);
	case C_STDIN_EOF: return n == 0 && (c->flags & WANT_STDIN);
	case C_RESIZE: return n == 4;
	case C_DETACH: return n == 0;
	case C_DONE: return n == 0 && c == owner && linger_until;
	case C_CLOSE: return n == 1 && c == owner;
	default: return 0;
	}
}

static void frame_act(struct client *c)
{
	const uint8_t *payload = c->frame.payload;
	uint32_t words[2];

	memcpy(words, payload, sizeof words);
	switch (c->frame.header.type) {
	case C_HELLO:
		if (le32toh(words[0]) != VERSION) {
			send_now(c->fd, S_REFUSED, 1, REFUSED_VERSION, 0);
			drop(c);
			break;
		}
		c->flags = (le32toh(words[1]) & (WANT_STDIN | WANT_OUTPUT)) | 1U << 31;
		if (!c->greeted) {
			c->greeted = 1;
			c->pos = head;
			send_hello(c);
		}
		break;
	case C_STDIN_EOF:
		in_eof |= !tty;
		in_eot = tty;
		break;
	case C_RESIZE:
		size.ws_row = (unsigned short)(payload[0] | payload[1] << 8);
		size.ws_col = (unsigned short)(payload[2] | payload[3] << 8);
		resize();
		break;
	case C_DETACH: {
		int eof = in_eof;

		drop(c);
		in_eof = eof; /* the owner left on purpose: stdin stays open for the next client */
		break;
	}
	case C_DONE:
		done = 1;
		drop(c);
		break;
	case C_CLOSE: /* as with a pipe, a reader that leaves is noticed: the container's next write is EPIPE */
		if (payload[0] == 1 || payload[0] == 2)
			stream_close(&streams[payload[0] - 1]);
	}
}

static void client_read(struct client *c)
{
	for (int turns = 0; turns < 16 && c->fd >= 0 && !stalled(c); turns++) {
		uint32_t length = le32toh(c->frame.header.length);
		int sink = c->left > 0 && stdin_takes();
		size_t want = sink ? stdin_room() : sizeof scratch;
		char *to = sink ? inbuf + in_end : scratch;
		ssize_t n;

		if (c->left == 0) {
			to = (char *)&c->frame + c->have;
			want = sizeof c->frame.header + (c->have < sizeof c->frame.header ? 0 : length) - c->have;
		} else if (want > c->left) {
			want = c->left;
		}
		n = recv(c->fd, to, want, MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			drop(c);
			return;
		}
		if (c->left > 0) {
			c->left -= (uint32_t)n;
			in_end += sink ? (size_t)n : 0;
			continue;
		}
		c->have += (uint32_t)n;
		length = le32toh(c->frame.header.length);
		if (c->have == sizeof c->frame.header && !frame_valid(c, length)) {
			drop(c);
		} else if (c->have >= sizeof c->frame.header && c->frame.header.type == C_STDIN) {
			c->left = length;
			c->have = 0;
		} else if (c->have == sizeof c->frame.header + length) {
			c->have = 0;
			frame_act(c);
		}
	}
}

static void client_accept(void)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ucred peer = { 0, (uid_t)-1, (gid_t)-1 };
	struct client *c = owner + 1;

	if (fd < 0)
		return;
	/* The socket's mode and directory keep others out; who got here anyway (the host's network namespace, a
	 * descriptor passed along) still has to have our uid. unix(7), SO_PEERCRED. */
	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &(socklen_t){ sizeof peer });
	while (c < clients + CLIENTS && c->fd >= 0)
		c++;
	if ((peer.uid != geteuid() && peer.uid != 0) || c == clients + CLIENTS) {
		send_now(fd, S_REFUSED, 1, c == clients + CLIENTS ? REFUSED_FULL : REFUSED_PEER, 0);
		close(fd);
		return;
	}
	*c = (struct client){ .fd = fd };
}
