/* What a network costs: the round trip of one byte, and a stream of 64 KiB writes. */
#define _GNU_SOURCE
#include "probe.h"
#include "cost.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHUNK = 65536 };

static char chunk[CHUNK];

static struct sockaddr_in address_of(const char *host, long port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };

	inet_pton(AF_INET, host, &address.sin_addr);
	return address;
}

static int bound(int kind, const struct sockaddr_in *address)
{
	int on = 1, fd = socket(AF_INET, kind | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (const struct sockaddr *)address, sizeof(*address)) || (kind == SOCK_STREAM && listen(fd, 16)))
		return -1;
	return fd;
}

static ssize_t get(int fd, void *bytes, size_t size)
{
	return recv(fd, bytes, size, MSG_WAITALL);
}

/* A connection says again and again how many bytes follow, and is answered by one byte when they are all there. One
 * that says 0 at first is a ping-pong: each byte is sent back. */
static void serve(int fd)
{
	uint64_t size;
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (get(fd, &size, sizeof(size)) != sizeof(size))
		return;
	if (!size) {
		while (get(fd, chunk, 1) == 1 && send(fd, chunk, 1, MSG_NOSIGNAL) == 1)
			;
		return;
	}
	do {
		while (size) {
			ssize_t some = recv(fd, chunk, size < CHUNK ? size : CHUNK, 0);
			if (some <= 0)
				return;
			size -= (uint64_t)some;
		}
		if (send(fd, chunk, 1, MSG_NOSIGNAL) != 1)
			return;
	} while (get(fd, &size, sizeof(size)) == sizeof(size));
}

static void serve_all(int stream, int datagrams)
{
	struct sockaddr_in from;
	socklen_t size;
	int fd;

	signal(SIGCHLD, SIG_IGN);
	if (!fork()) { /* a process for datagrams alone: no answer has to wait for a poll */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;) {
			char byte;
			size = sizeof(from);
			if (recvfrom(datagrams, &byte, 1, 0, (struct sockaddr *)&from, &size) == 1)
				sendto(datagrams, &byte, 1, 0, (struct sockaddr *)&from, size);
		}
	}
	while ((fd = accept4(stream, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			serve(fd);
			_exit(0);
		}
		close(fd);
	}
}

static int do_ping(void *of, long count)
{
	int fd = *(int *)of;
	char byte = 1;

	for (; count > 0; count--)
		if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1)
			return errno ? errno : EIO;
	return 0;
}

static int do_stream(void *of, long count)
{
	int fd = *(int *)of;
	uint64_t size = (uint64_t)count * CHUNK;
	char byte;

	if (send(fd, &size, sizeof(size), MSG_NOSIGNAL) != sizeof(size))
		return errno;
	for (; count > 0; count--)
		for (size_t done = 0; done < CHUNK;) {
			ssize_t some = send(fd, chunk + done, CHUNK - done, MSG_NOSIGNAL);
			if (some < 0)
				return errno;
			done += (size_t)some;
		}
	return get(fd, &byte, 1) == 1 ? 0 : EIO;
}

static int connected(int kind, const struct sockaddr_in *address)
{
	struct timeval patience = { 5, 0 };
	int on = 1, fd;

	fd = socket(AF_INET, kind | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (kind == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (!connect(fd, (const struct sockaddr *)address, sizeof(*address)))
		return fd;
	on = errno;
	close(fd);
	errno = on;
	return -1;
}

static void measure(const struct sockaddr_in *address, struct pace pace)
{
	uint64_t none = 0;
	int fd = connected(SOCK_STREAM, address);

	if (fd < 0 || send(fd, &none, sizeof(none), MSG_NOSIGNAL) != sizeof(none))
		not_timed("tcp", errno);
	else
		timed("tcp", do_ping, &fd, pace);
	close(fd);
	fd = connected(SOCK_STREAM, address);
	if (fd < 0)
		not_timed("stream", errno);
	else
		timed("stream", do_stream, &fd, pace);
	close(fd);
	fd = connected(SOCK_DGRAM, address);
	if (fd < 0)
		not_timed("udp", errno);
	else
		timed("udp", do_ping, &fd, pace);
	close(fd);
}

PROBE(cost_server, "answers cost_client until it is killed; host=, port=")
{
	struct sockaddr_in address = address_of(text(args, "host", "0.0.0.0"), number(args, "port", 7007));
	int stream = bound(SOCK_STREAM, &address), datagrams = bound(SOCK_DGRAM, &address);

	if (stream < 0 || datagrams < 0)
		return errno;
	json_text("said", "listening");
	json_line();
	serve_all(stream, datagrams);
	return errno;
}

PROBE(cost_client, "nanoseconds a round trip of a byte by TCP and by UDP, and a 64 KiB write; host=, port=, ms=, batches=")
{
	struct sockaddr_in address = address_of(text(args, "host", "127.0.0.1"), number(args, "port", 7007));

	measure(&address, pace_of(args));
	return 0;
}

PROBE(cost_loopback, "cost_client of a server of its own, by 127.0.0.1; port=, ms=, batches=")
{
	struct sockaddr_in address = address_of("127.0.0.1", number(args, "port", 7007));
	int stream = bound(SOCK_STREAM, &address), datagrams = bound(SOCK_DGRAM, &address);
	pid_t server;

	if (stream < 0 || datagrams < 0)
		return errno;
	server = fork();
	if (server < 0)
		return errno;
	if (!server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve_all(stream, datagrams);
		_exit(1);
	}
	measure(&address, pace_of(args));
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	return 0;
}
