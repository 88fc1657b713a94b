/* One process's bytes and its dialogue over one port of a machine: the same loop on both ends.
 *
 * On the host a stand-in for the process, which has the container's pid, its signals, its stdio and its exit status;
 * in the guest the session that starts the process. Messages as in protocol.h. A sender sends no more of a stream
 * than it was granted, so whatever the other side does, what is kept here is bounded; nothing waits for a slow
 * stream but that stream.
 *
 * Trust: the peer of the host's end is a hostile guest. Every length is checked, every byte counted; nonsense ends
 * the conversation. O_NONBLOCK belongs to the open file description, which may be shared with strangers: it is set
 * only where the description is our own.
 */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "plan.h"

#define WINDOW 65536u
#define PIECE 4096 /* pipe(7): what poll says can be written, up to PIPE_BUF, does not block */
#define READ_MAX 32768
#define LATER (-2)
#define HANGUP_MS 200 /* how often a terminal that no process has open is looked at again */

enum { PORT, LOCAL, SIGNALS, OTHER, FROM, TO = FROM + 3, POLLED = TO + 3 };

static struct stream {
	int from, to;      /* we send what comes from the one, write to the other what we get; -1: none, or no more;
			    * LATER: it is not there yet */
	bool sink, closing, over; /* closing: once the buffer is empty, for whatever reason; over: the peer has said so */
	bool tty;          /* "from" is a pty's master, and may be opened again after it has hung up */
	long long asleep;  /* until when it is left alone */
	uint32_t most;     /* what one write may have: more than PIECE only where it does not block */
	uint64_t moved;    /* bytes read from "from" */
	uint32_t window;   /* bytes that the peer has granted us */
	uint32_t owed;     /* bytes written to "to", to be granted again */
	uint32_t start, end;
	char buffer[WINDOW];
} streams[3];

static struct {
	int port, local, signals, other; /* local: the dialogue with init or with Python */
	bool gone;                       /* the peer has hung up, or talks nonsense */
	const char *nonsense;
	uint32_t in_end, out_at, out_end;
	char in[8 + MESSAGE_MAX_BYTES], out[8 + MESSAGE_MAX_BYTES + 4 * READ_MAX];
} r;

/* What the two ends do differently: a message that is not of a stream; something of their own to send. */
static bool (*message_taken)(uint32_t type, const char *payload, uint32_t n);
static void (*collect)(void);

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void put(uint32_t type, const void *payload, uint32_t n)
{
	if (n > sizeof r.out - 8 - r.out_end) { /* who asks without end and reads no answer */
		r.nonsense = "more than it takes answers for";
		r.gone = true;
		return;
	}
	memcpy(r.out + r.out_end, &type, 4);
	memcpy(r.out + r.out_end + 4, &n, 4);
	memcpy(r.out + r.out_end + 8, payload, n);
	r.out_end += 8 + n;
}

static void put_pair(uint32_t type, uint32_t a, uint32_t b)
{
	uint32_t pair[2] = { a, b };

	put(type, pair, 8);
}

static void streams_begin(void)
{
	for (int i = 0; i < 3; i++) {
		struct stream *s = &streams[i];
		s->from = s->to = -1;
		s->sink = s->closing = s->over = s->tty = false;
		s->most = PIECE;
		s->window = WINDOW;
		s->asleep = s->moved = s->owed = s->start = s->end = 0;
	}
}

static void relay_begin(int port, int local)
{
	r.port = port;
	r.local = local;
	r.signals = r.other = -1;
	streams_begin();
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static bool nonsense(const char *why)
{
	r.nonsense = why;
	return false;
}

/* ---- what comes from the peer ---- */

static bool stream_message(uint32_t type, const char *payload, uint32_t n)
{
	uint32_t number, amount;

	if (n < 4 || (type == MSG_credit && n != 8) || (type == MSG_close && n != 4))
		return nonsense("a stream message of a wrong length");
	memcpy(&number, payload, 4);
	if (number > 2)
		return nonsense("a stream that does not exist");
	struct stream *s = &streams[number];
	if (type == MSG_credit) {
		memcpy(&amount, payload + 4, 4);
		if (s->sink || amount > WINDOW - s->window)
			return nonsense("a grant of more than was used");
		s->window += amount;
	} else if (type == MSG_close) {
		if (s->sink)
			s->closing = s->over = true;
		else if (s->from >= 0)
			shut(&s->from);
	} else {
		n -= 4;
		if (!s->sink || s->over || n > WINDOW - (s->end - s->start) - s->owed)
			return nonsense("more of a stream than was granted");
		if (s->start == s->end)
			s->start = s->end = 0;
		if (n > WINDOW - s->end) {
			memmove(s->buffer, s->buffer + s->start, s->end - s->start);
			s->end -= s->start;
			s->start = 0;
		}
		memcpy(s->buffer + s->end, payload + 4, n);
		s->end += n;
		if (s->to == -1) { /* nobody reads it any more, which the peer will hear */
			s->owed += s->end - s->start;
			s->start = s->end = 0;
		}
	}
	return true;
}

static bool taken(uint32_t type, const char *payload, uint32_t n)
{
	if (type == MSG_stream || type == MSG_credit || type == MSG_close)
		return stream_message(type, payload, n);
	return message_taken(type, payload, n);
}

static void port_read(void)
{
	ssize_t got = read(r.port, r.in + r.in_end, sizeof r.in - r.in_end);
	uint32_t at = 0, head[2];

	if (got <= 0) {
		r.gone = r.gone || got == 0 || (errno != EAGAIN && errno != EINTR);
		return;
	}
	r.in_end += got;
	for (; !r.gone && r.in_end - at >= 8; at += 8 + head[1]) {
		memcpy(head, r.in + at, 8);
		if (head[1] > MESSAGE_MAX_BYTES) {
			r.nonsense = "a message that is too long";
			r.gone = true;
		} else if (r.in_end - at - 8 < head[1]) {
			break;
		} else if (!taken(head[0], r.in + at + 8, head[1])) {
			r.gone = true;
		}
	}
	if (r.gone)
		return;
	memmove(r.in, r.in + at, r.in_end - at);
	r.in_end -= at;
}

/* ---- what goes to the peer; asked for only while nothing waits to be sent ---- */

static void stream_read(struct stream *s)
{
	uint32_t most = s->window < READ_MAX ? s->window : READ_MAX, number = s - streams, head[2] = { MSG_stream, 0 };
	char *at = r.out + r.out_end;
	ssize_t got = read(s->from, at + 12, most);

	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (got < 0 && s->tty) { /* EIO: no process has the other side open; somebody may open it again */
		s->asleep = now_ms() + HANGUP_MS;
		return;
	}
	if (got <= 0) {
		shut(&s->from);
		put(MSG_close, &number, 4);
		return;
	}
	head[1] = 4 + got;
	memcpy(at, head, 8);
	memcpy(at + 8, &number, 4);
	r.out_end += 12 + got;
	s->window -= got;
	s->moved += got;
}

static void stream_write(struct stream *s)
{
	uint32_t n = s->end - s->start;
	ssize_t put_ = write(s->to, s->buffer + s->start, n < s->most ? n : s->most);

	if (put_ < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (put_ < 0) {
		shut(&s->to); /* EPIPE and the like: what is left, nobody will read */
		s->closing = true;
		put_ = n;
	}
	s->start += put_;
	s->owed += put_;
}

static void grants(void)
{
	for (uint32_t i = 0; i < 3; i++) {
		struct stream *s = &streams[i];

		if (s->sink && s->to == -1 && s->closing && s->window) {
			s->window = 0; /* once */
			put(MSG_close, &i, 4);
		}
		if (s->owed >= WINDOW / 4) {
			put_pair(MSG_credit, i, s->owed);
			s->owed = 0;
		}
	}
}

static bool flushed(void)
{
	for (int i = 0; i < 3; i++)
		if (streams[i].to >= 0 && streams[i].start < streams[i].end)
			return false;
	return true;
}

/* One turn: waits for something and moves what can be moved; LOCAL, SIGNALS and OTHER are left to the caller.
 * A port that has hung up is read too: what was sent before is still to be had. */
static void relay_turn(struct pollfd p[POLLED], int timeout)
{
	bool idle = r.out_at == r.out_end;

	if (idle) {
		r.out_at = r.out_end = 0;
		grants();
		collect();
		idle = r.out_end == 0;
	}
	p[PORT] = (struct pollfd){ r.port, (short)(POLLIN | (idle ? 0 : POLLOUT)), 0 };
	p[LOCAL] = (struct pollfd){ idle ? r.local : -1, POLLIN, 0 };
	p[SIGNALS] = (struct pollfd){ r.signals, POLLIN, 0 };
	p[OTHER] = (struct pollfd){ idle ? r.other : -1, POLLIN, 0 };
	for (int i = 0; i < 3; i++) {
		struct stream *s = &streams[i];
		if (s->asleep && s->asleep <= now_ms())
			s->asleep = 0;
		if (s->asleep && (timeout < 0 || timeout > HANGUP_MS))
			timeout = HANGUP_MS;
		p[FROM + i] = (struct pollfd){ idle && s->window && !s->sink && !s->asleep ? s->from : -1, POLLIN, 0 };
		p[TO + i] = (struct pollfd){ s->start < s->end ? s->to : -1, POLLOUT, 0 };
	}
	if (poll(p, POLLED, timeout) < 0) {
		for (int i = 0; i < POLLED; i++)
			p[i].revents = 0;
		return;
	}
	if (p[PORT].revents & POLLOUT) {
		ssize_t sent = write(r.port, r.out + r.out_at, r.out_end - r.out_at);
		if (sent > 0)
			r.out_at += sent;
		else if (sent < 0 && errno != EAGAIN && errno != EINTR)
			r.out_at = r.out_end; /* the peer hears nothing any more; what it said before is still to be read */
	}
	for (int i = 0; i < 3; i++) {
		struct stream *s = &streams[i];
		if (p[TO + i].revents)
			stream_write(s);
		if (p[FROM + i].revents)
			stream_read(s);
	}
	if (p[PORT].revents & (POLLIN | POLLHUP | POLLERR))
		port_read();
	/* Last: an end that comes alone, when all before it is written, has nothing after it to wake us again. */
	for (int i = 0; i < 3; i++)
		if (streams[i].closing && streams[i].start == streams[i].end)
			shut(&streams[i].to);
}
