/* Neighbours that use what they may, without end. */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, CHUNK = 65536, FILE_SIZE = 32 << 20, DATAGRAM = 1400 };

static char block[CHUNK];
static char path[4096];
static size_t bytes;

static void cpu(void)
{
	for (volatile uint64_t i = 0;; i++)
		;
}

static void memory(void)
{
	for (;;) {
		char *space = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (space == MAP_FAILED)
			continue;
		for (size_t i = 0; i < bytes; i += PAGE)
			space[i] = 1;
		munmap(space, bytes);
	}
}

static void io(void)
{
	int fd;

	snprintf(path + strlen(path), 32, ".%d", (int)getpid());
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	for (off_t at = 0; fd >= 0; at = (at + CHUNK) % FILE_SIZE)
		if (pwrite(fd, block, CHUNK, at) != CHUNK || fsync(fd))
			break;
	perror("hog: write");
}

static void fork_(void)
{
	for (;;) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		if (pid > 0)
			waitpid(pid, NULL, 0);
	}
}

/* Datagrams to a socket that nobody reads: each is carried to its queue, and dropped where that is full. */
static void network(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(at);
	int server = socket(AF_INET, SOCK_DGRAM, 0), client = socket(AF_INET, SOCK_DGRAM, 0);

	if (bind(server, (struct sockaddr *)&at, size) || getsockname(server, (struct sockaddr *)&at, &size))
		return;
	for (;;)
		sendto(client, block, DATAGRAM, 0, (struct sockaddr *)&at, size);
}

static const struct load {
	const char *name;
	void (*run)(void);
} loads[] = { { "cpu", cpu }, { "memory", memory }, { "io", io }, { "fork", fork_ }, { "network", network } };

PROBE(hog, "load=cpu|memory|io|fork|network [processes=4] [bytes=N] [dir=DIR]: says that it is at work, and goes on")
{
	const char *name = text(args, "load", "");
	long processes = number(args, "processes", 4);
	const struct load *load = NULL;

	for (size_t i = 0; i < sizeof(loads) / sizeof(*loads); i++)
		if (!strcmp(loads[i].name, name))
			load = &loads[i];
	if (!load || processes < 1)
		return EINVAL;
	bytes = (size_t)number(args, "bytes", 64 << 20) / (size_t)processes / PAGE * PAGE;
	snprintf(path, sizeof(path) - 32, "%s/hog", text(args, "dir", "/tmp"));
	for (long i = 0; i < processes; i++) {
		pid_t pid = fork();

		if (pid < 0)
			return errno;
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			load->run();
			_exit(1);
		}
	}
	json_text("hog", name);
	json_line();
	for (int status; wait(&status) > 0;)
		;
	return ECHILD; /* none of them ends by itself */
}
