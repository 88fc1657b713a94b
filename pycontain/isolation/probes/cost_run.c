/* Programs of the host as work: how long one runs, and how a web server answers. And a program that only waits. */
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
#include <strings.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* What follows "--". */
static char **command_of(char **args)
{
	for (; *args; args++)
		if (!strcmp(*args, "--"))
			return args + 1;
	return args;
}

/* Its output goes to stderr: stdout is for the answer. */
static pid_t started(char **command)
{
	pid_t child = fork();

	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(2, 1);
		execv(command[0], command);
		_exit(errno == ENOENT ? 127 : 126);
	}
	return child;
}

PROBE(cost_run, "milliseconds of a command, from its fork to its end; times=, then -- and the command")
{
	char **command = command_of(args);
	long times = number(args, "times", 1);
	double values[64];
	int status = 0;

	if (!*command || times < 1 || times > 64)
		return EINVAL;
	for (long i = 0; i < times; i++) {
		uint64_t start = now_ns();
		pid_t child = started(command);
		if (child < 0 || waitpid(child, &status, 0) != child)
			return errno;
		values[i] = (double)(now_ns() - start) / 1e6;
		if (status) {
			json_number("status", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
			return ECANCELED;
		}
	}
	json_numbers("run", values, (size_t)times);
	return 0;
}

PROBE(cost_exec, "becomes another program: -- and its command")
{
	char **command = command_of(args);

	if (!*command)
		return EINVAL;
	execv(command[0], command);
	return errno;
}

PROBE(cost_idle, "says a line and waits: an instance that does nothing")
{
	json_text("said", "idle");
	json_line();
	for (;;)
		pause();
	return 0;
}

enum { CLIENTS = 8, MOST = 100000 };

/* What all clients write to. A latency is in nanoseconds. */
struct tally {
	uint32_t count, error;
	uint32_t latency[MOST];
};

static int dial(long port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	struct timeval patience = { 10, 0 };
	int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0)
		return -1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		on = errno;
		close(fd);
		errno = on;
		return -1;
	}
	return fd;
}

/* One request by a connection that goes on. The length of a good answer, or -1. */
static long request(int fd)
{
	static const char get[] = "GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n";
	char answer[65536], *end, *length;
	size_t got = 0, wanted = 0;

	if (send(fd, get, sizeof(get) - 1, MSG_NOSIGNAL) != sizeof(get) - 1)
		return -1;
	while (!wanted || got < wanted) {
		ssize_t some = recv(fd, answer + got, sizeof(answer) - 1 - got, 0);
		if (some <= 0)
			return -1;
		got += (size_t)some;
		answer[got] = 0;
		if (wanted || !(end = strstr(answer, "\r\n\r\n")))
			continue;
		length = strcasestr(answer, "\r\nContent-Length:");
		if (strncmp(answer, "HTTP/1.1 200 ", 13) || !length || length > end)
			return -1;
		wanted = (size_t)(end + 4 - answer) + (size_t)strtoul(length + 17, NULL, 10);
		if (wanted >= sizeof(answer))
			return -1;
	}
	return (long)wanted;
}

static void client(struct tally *tally, long port, uint64_t end)
{
	int fd = dial(port);
	uint64_t before = now_ns(), after;

	while (before < end && tally->count < MOST) {
		errno = 0;
		if (fd < 0 || request(fd) < 0) {
			tally->error = errno ? (uint32_t)errno : EPROTO;
			break;
		}
		after = now_ns();
		tally->latency[tally->count++] = after - before > UINT32_MAX ? UINT32_MAX : (uint32_t)(after - before);
		before = after;
	}
}

static int compare(const void *one, const void *other)
{
	uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;

	return (a > b) - (a < b);
}

static int answers(struct tally *tallies, long clients, double seconds)
{
	uint32_t *all;
	size_t count = 0;

	for (long i = 0; i < clients; i++) {
		if (tallies[i].error)
			return (int)tallies[i].error;
		count += tallies[i].count;
	}
	all = malloc((count + 1) * sizeof(*all));
	if (!all || !count)
		return all ? ENODATA : ENOMEM;
	count = 0;
	for (long i = 0; i < clients; i++) {
		memcpy(all + count, tallies[i].latency, tallies[i].count * sizeof(*all));
		count += tallies[i].count;
	}
	qsort(all, count, sizeof(*all), compare);
	json_number("requests", (double)count);
	json_number("rate", (double)count / seconds);
	json_number("p99", all[count * 99 / 100]);
	free(all);
	return 0;
}

PROBE(cost_web, "requests a second of a web server, and its p99 in nanoseconds; port=, ms=, clients=, then -- and the server")
{
	char **command = command_of(args);
	long running = 0, port = number(args, "port", 8080), clients = number(args, "clients", 2), ms = number(args, "ms", 300);
	struct tally *tallies;
	uint64_t start = now_ns();
	int fd, status, error = 0;
	pid_t server;

	if (!*command || clients < 1 || clients > CLIENTS)
		return EINVAL;
	tallies = mmap(NULL, (size_t)clients * sizeof(*tallies), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tallies == MAP_FAILED || (server = started(command)) < 0)
		return errno;
	while ((fd = dial(port)) < 0) {
		if (waitpid(server, &status, WNOHANG) == server)
			return ECHILD;
		if (now_ns() - start > 60000000000u) {
			error = ETIMEDOUT;
			goto end;
		}
		usleep(5000);
	}
	errno = 0;
	for (int i = 0; i < 20 && !error; i++) /* what a server does at its first requests only */
		error = request(fd) < 0 ? (errno ? errno : EPROTO) : 0;
	close(fd);
	if (error)
		goto end;
	start = now_ns();
	for (; running < clients; running++) {
		pid_t child = fork();
		if (child < 0) {
			error = errno;
			break;
		}
		if (!child) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			client(&tallies[running], port, start + (uint64_t)ms * 1000000u);
			_exit(0);
		}
	}
	for (; running > 0; running--)
		if (wait(&status) == server) { /* it is not to end before its clients */
			error = ECHILD;
			goto end;
		}
	if (!error)
		error = answers(tallies, clients, (double)(now_ns() - start) / 1e9);
end:
	kill(server, SIGKILL);
	while (wait(NULL) > 0 || errno == EINTR)
		;
	return error;
}
