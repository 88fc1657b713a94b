/*
 * pid 1 of a guest that was taken over: it speaks the protocol of init/protocol.h so far as "hostile=MODE" on the
 * kernel's command line lets it, and carries out nothing. MODE "polite" has no fault but that.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { UNSHARED = 1, GO, READY, START, EXITED, FAILED, DATA, HELLO, PART, SESSION, RUNNING, STREAM, CREDIT, CLOSE, SIGNAL };
enum { OP_CLONE = 5, OP_READ = 46 }; /* runtime/init/protocol.h */
#define PORTS 4
#define MESSAGE_MAX (1u << 20)

static const char *mode;
static struct port {
	int fd;
	char path[32];
	uint32_t end, plan_end;
	char in[8 + MESSAGE_MAX], plan[4 * MESSAGE_MAX];
} ports[PORTS];
static char large[8 + MESSAGE_MAX];

static bool is(const char *name)
{
	return strcmp(mode, name) == 0;
}

/* Whoever is deaf, says nothing more either. */
static void stall(void)
{
	for (;;)
		pause();
}

static void send_bytes(struct port *p, const void *data, size_t n)
{
	for (const char *at = data; n;) {
		ssize_t put = write(p->fd, at, n);
		if (put < 0 && errno != EAGAIN && errno != EINTR)
			return;
		if (put < 0)
			poll(&(struct pollfd){ p->fd, POLLOUT, 0 }, 1, 100);
		if (put > 0) {
			at += put;
			n -= put;
		}
	}
}

static void say(struct port *p, uint32_t type, const void *payload, uint32_t n)
{
	memcpy(large, &type, 4);
	memcpy(large + 4, &n, 4);
	if (payload)
		memcpy(large + 8, payload, n);
	send_bytes(p, large, 8 + n);
}

static void say_word(struct port *p, uint32_t type, uint32_t word)
{
	say(p, type, &word, 4);
}

static void ends(struct port *p, uint32_t status)
{
	say(p, EXITED, (uint32_t[]){ status, 0 }, 8);
}

static void fails(struct port *p, const char *text)
{
	char payload[1024];

	memcpy(payload, (uint32_t[]){ ~0u, 1 }, 8);
	say(p, FAILED, payload, 8 + snprintf(payload + 8, sizeof payload - 8, "%s", text));
}

/* "call-data" and the like: a flood, of messages with ``n`` bytes each. */
static void flood(struct port *p, uint32_t type, uint32_t n)
{
	static char zeros[MESSAGE_MAX];

	for (uint32_t i = 0; i < 4096; i++) {
		memcpy(zeros, &(uint32_t){ type == STREAM }, 4);
		say(p, type, zeros, n);
	}
	stall();
}

static void drip(struct port *p)
{
	uint32_t head[2] = { DATA, 20 };

	send_bytes(p, head, 8);
	for (;;) {
		usleep(100000);
		send_bytes(p, "", 1);
	}
}

static void call(struct port *p, uint32_t reads)
{
	static int calls;
	const char answer[] = "\0\0\0\0" "40\n", letters[] = "\0\0\0\0" "zzz";

	if (is("call-data"))
		flood(p, DATA, 7);
	if (is("call-large"))
		flood(p, DATA, MESSAGE_MAX);
	if (is("call-drip") && calls++)
		drip(p);
	if (is("call-deaf") && calls++)
		stall();
	if (is("call-fails"))
		fails(p, "\033[2Jclear the screen\a");
	if (is("call-exits"))
		return ends(p, 1 << 8);
	for (uint32_t i = 0; i < reads && !is("call-silent"); i++)
		say(p, DATA, is("call-letters") ? letters : answer, 7);
	ends(p, 0);
}

static void container(struct port *p)
{
	if (p != ports && is("exec-stall"))
		return;
	if (p != ports && is("exec-flood"))
		flood(p, STREAM, 65536);
	if (p != ports && is("exec-nonsense"))
		return send_bytes(p, "GET / HTTP/1.0\r\n\r\n", 18);
	if (is("flood-data"))
		flood(p, DATA, 64);
	if (is("flood-unshared"))
		flood(p, UNSHARED, 4);
	if (is("flood-early"))
		flood(p, STREAM, 65536);
	if (is("exited-early"))
		ends(p, 0), ends(p, 0);
	if (is("fails"))
		fails(p, "\033]0;title\a");
	if (is("no-unshared"))
		return;
	say_word(p, UNSHARED, is("pid-0") ? 0 : is("pid-max") ? ~0u : 42);
}

static void begins(struct port *p)
{
	uint32_t at = 16, reads = 0, head[2];
	bool cloned = false;

	for (; at + 8 <= p->plan_end; at += 8 + head[1]) {
		memcpy(head, p->plan + at, 8);
		reads += head[0] == OP_READ;
		cloned |= head[0] == OP_CLONE;
	}
	p->plan_end = 0;
	if (cloned)
		container(p);
	else
		call(p, reads);
}

static void reopen(struct port *p)
{
	for (int i = 0; i < 50; i++) {
		close(p->fd);
		p->fd = open(p->path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		send_bytes(p, "abc", 3);
	}
	stall();
}

static void runs(struct port *p)
{
	if (p != ports && is("exec-running"))
		return;
	say(p, RUNNING, NULL, 0);
	if (is("flood-stream"))
		flood(p, STREAM, 65536);
	if (is("flood-ready"))
		flood(p, READY, 0);
	if (is("exited-twice"))
		ends(p, 3 << 8), ends(p, 4 << 8);
	if (is("exited-odd"))
		ends(p, ~0u);
	if (is("serial"))
		for (;;)
			dprintf(2, "hostile: %0200d\n", 0);
	if (is("deaf"))
		stall();
	if (is("reboot-running"))
		reboot(RB_AUTOBOOT);
}

static void take(struct port *p, uint32_t type, const char *payload, uint32_t n)
{
	switch (type) {
	case HELLO:
		if (is("nonsense"))
			send_bytes(p, "GET / HTTP/1.0\r\n\r\n", 18);
		if (is("huge"))
			send_bytes(p, (uint32_t[]){ HELLO, ~0u, 0, 0 }, 16);
		if (is("other-hello"))
			payload = "12345678";
		say(p, HELLO, payload, 8);
		if (is("hello-stall"))
			stall();
		break;
	case PART:
		if (n <= sizeof p->plan - p->plan_end)
			memcpy(p->plan + p->plan_end, payload, n);
		p->plan_end += n;
		break;
	case SESSION: begins(p); break;
	case GO:
		if (is("reopen"))
			reopen(p);
		if (is("reboot"))
			reboot(RB_AUTOBOOT);
		if (p != ports)
			runs(p); /* an exec's plan stops nowhere */
		else if (!is("no-ready"))
			say(p, READY, NULL, 0);
		break;
	case START:
		if (!is("no-running"))
			runs(p);
		break;
	case SIGNAL: ends(p, *payload); break;
	}
}

static void hear(struct port *p)
{
	ssize_t got = read(p->fd, p->in + p->end, sizeof p->in - p->end);
	uint32_t at = 0, head[2];

	if (got <= 0)
		return;
	p->end += got;
	for (; p->end - at >= 8; at += 8 + head[1]) {
		memcpy(head, p->in + at, 8);
		if (p->end - at - 8 < head[1])
			break;
		take(p, head[0], p->in + at + 8, head[1]);
	}
	memmove(p->in, p->in + at, p->end - at);
	p->end -= at;
}

static void load_modules(void)
{
	FILE *list = fopen("/m/list", "re");
	char name[256], path[272];

	while (list && fscanf(list, "%200s", name) == 1) {
		snprintf(path, sizeof path, "/m/%s", name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		syscall(SYS_finit_module, fd, "", 0);
		close(fd);
	}
}

int main(void)
{
	mode = getenv("hostile") ? getenv("hostile") : "polite";
	if (is("silent"))
		stall();
	load_modules();
	mkdir("/dev", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	for (int i = 0; i < PORTS; i++) {
		struct port *p = &ports[i];
		for (int n = 0; (p->fd = open(p->path, O_RDWR | O_NONBLOCK | O_CLOEXEC)) < 0; n = (n + 1) % 16) {
			snprintf(p->path, sizeof p->path, "/dev/vport%dp%d", n, i + 1);
			usleep(200);
		}
	}
	for (;;) {
		for (int i = 0; i < PORTS; i++)
			hear(&ports[i]);
		usleep(1000);
	}
}
