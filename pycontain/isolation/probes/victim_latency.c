/* The neighbour: a small unit of work, again and again, and how long each took. It sleeps in between, as a service
 * does that waits for a request; the time runs from the moment at which it wanted to wake. */
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
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, SPACE = 64 * PAGE, CHUNK = 65536, MOST = 8192, ITERATIONS = 60000 };

static int to, from; /* of the echo */
static char path[4096];
static char block[CHUNK];
static volatile uint64_t sink;

static int compute(void)
{
	uint64_t x = sink | 1;

	for (int i = 0; i < ITERATIONS; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	sink = x;
	return 0;
}

static int memory(void)
{
	char *space = mmap(NULL, SPACE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (space == MAP_FAILED)
		return errno;
	for (int i = 0; i < SPACE; i += PAGE)
		space[i] = 1;
	munmap(space, SPACE);
	return 0;
}

static int sync_(void)
{
	return pwrite(to, block, PAGE, 0) != PAGE || fsync(to) ? errno : 0;
}

static int echo(void)
{
	char byte = 'x';

	return write(to, &byte, 1) != 1 || read(from, &byte, 1) != 1 ? errno : 0;
}

static int fork_(void)
{
	pid_t pid = fork();

	if (pid < 0)
		return errno;
	if (!pid)
		_exit(0);
	waitpid(pid, NULL, 0);
	return 0;
}

static int open_(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static int write_(void)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), error = 0;

	if (fd < 0)
		return errno;
	errno = ENOSPC;
	if (write(fd, block, CHUNK) != CHUNK || fsync(fd)) /* a guest knows only then what its disk can hold */
		error = errno;
	close(fd);
	unlink(path);
	return error;
}

static int create(void)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return errno;
	close(fd);
	unlink(path);
	return 0;
}

static pid_t partner(void)
{
	pid_t pid = fork();

	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

static int with_pipes(void)
{
	int there[2], back[2];
	char byte;

	if (pipe(there) || pipe(back))
		return errno;
	if (!partner()) {
		while (read(there[0], &byte, 1) == 1)
			if (write(back[1], &byte, 1) != 1)
				break;
		_exit(0);
	}
	to = there[1];
	from = back[0];
	return 0;
}

static int with_loopback(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(at);
	char byte;
	int server = socket(AF_INET, SOCK_DGRAM, 0);

	if (server < 0 || bind(server, (struct sockaddr *)&at, size) ||
	    getsockname(server, (struct sockaddr *)&at, &size))
		return errno;
	if (!partner()) {
		for (;;) {
			size = sizeof(at);
			if (recvfrom(server, &byte, 1, 0, (struct sockaddr *)&at, &size) == 1)
				sendto(server, &byte, 1, 0, (struct sockaddr *)&at, size);
		}
	}
	to = from = socket(AF_INET, SOCK_DGRAM, 0);
	return to < 0 || connect(to, (struct sockaddr *)&at, size) ? errno : 0;
}

static int with_file(void)
{
	to = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	return to < 0 ? errno : 0;
}

static const struct work {
	const char *name;
	int (*prepare)(void);
	int (*once)(void);
} works[] = {
	{ "compute", NULL, compute },	{ "memory", NULL, memory },    { "sync", with_file, sync_ },
	{ "pipe", with_pipes, echo },	{ "loopback", with_loopback, echo }, { "fork", NULL, fork_ },
	{ "open", NULL, open_ },	{ "create", NULL, create },    { "write", NULL, write_ },
};

/* Memory that it has in use: it makes the victim the largest process, which the kernel kills first. */
static int hold(size_t bytes)
{
	char *held = bytes ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : NULL;

	if (held == MAP_FAILED)
		return errno;
	for (size_t i = 0; i < bytes; i += PAGE)
		held[i] = 1;
	return 0;
}

static void report(double *us, size_t count, int failed, int error)
{
	json_numbers("us", us, count);
	json_number("failed", failed);
	if (error)
		json_text("why", strerror(error));
	json_line();
}

PROBE(victim, "work=compute|memory|sync|pipe|loopback|fork|open|create|write [dir=DIR] [hold=BYTES] [gap_us=500] "
	      "[window_ms=50]: a line every window, us: how long each unit took")
{
	static double us[MOST];
	const struct work *work = NULL;
	const char *name = text(args, "work", "");
	uint64_t gap = (uint64_t)number(args, "gap_us", 500) * 1000;
	uint64_t window = (uint64_t)number(args, "window_ms", 50) * 1000000, begun;
	int error;

	for (size_t i = 0; i < sizeof(works) / sizeof(*works); i++)
		if (!strcmp(works[i].name, name))
			work = &works[i];
	if (!work)
		return EINVAL;
	snprintf(path, sizeof(path), "%s/victim.%d", text(args, "dir", "/tmp"), (int)getpid());
	prctl(PR_SET_TIMERSLACK, 1);
	error = hold((size_t)number(args, "hold", 0));
	if (!error && work->prepare)
		error = work->prepare();
	if (error)
		return error;
	for (;;) {
		size_t count = 0;
		int failed = 0, last = 0;

		begun = now_ns();
		while (count < MOST && now_ns() - begun < window) {
			uint64_t target = now_ns() + gap;
			struct timespec when = { (time_t)(target / 1000000000u), (long)(target % 1000000000u) };

			while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
				;
			error = work->once();
			if (error) {
				failed++;
				last = error;
			}
			us[count++] = (double)((now_ns() - target) / 100) / 10;
		}
		report(us, count, failed, last);
	}
}
