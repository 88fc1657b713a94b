/* Neighbours that take all there is of something, and then go on asking for more. They say so when they are refused
 * the first time, by an error or by the death of a child. What bounds them is around them, never in here. */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, CHUNK = 65536, PIECE = 16 << 20 };

static struct {
	atomic_int refused;
	atomic_long made;
} *all; /* shared by all processes */
static char path[4096], block[CHUNK];
static double most;

static void say(const char *what, double got, const char *why)
{
	if (atomic_exchange(&all->refused, 1))
		return;
	json_text("full", what);
	json_number("got", got);
	json_text("why", why);
	json_line();
}

/* Each of them forks as often as it can. */
static int bomb(void)
{
	for (;;) {
		pid_t pid = fork();

		if (pid < 0 && errno == EPERM)
			return errno;
		if (pid < 0)
			say("processes", (double)atomic_load(&all->made), strerror(errno));
		else if (pid)
			atomic_fetch_add(&all->made, 1);
	}
}

/* Processes that do nothing but be there. */
static int processes(void)
{
	for (double count = 0;; count++) {
		pid_t pid;

		while ((pid = fork()) < 0) {
			if (errno == EPERM)
				return errno;
			say("processes", count, strerror(errno));
			usleep(1000);
		}
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;)
				pause();
		}
	}
}

/* Child after child, each with a piece of what is taken: the kernel, where it has to kill, looks for a large one. */
static int pieces(const char *what, int (*take)(void))
{
	double count = 0;

	for (;;) {
		int done[2], status;
		char byte;
		pid_t pid;

		if (pipe(done))
			return errno;
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(done[0]);
			byte = (char)take();
			if (write(done[1], &byte, 1) == 1)
				for (;;)
					pause();
			_exit(1);
		}
		close(done[1]);
		if (pid < 0 || read(done[0], &byte, 1) != 1)
			say(what, count, pid < 0 ? strerror(errno) : "killed");
		else if (byte)
			say(what, count, strerror(byte));
		count++;
		close(done[0]);
		while (waitpid(-1, &status, WNOHANG) > 0)
			say(what, count, "killed"); /* the kernel may have chosen an older one */
		if (atomic_load(&all->refused))
			usleep(100000); /* each death is a page in the host's kernel log */
	}
}

static int piece_of_memory(void)
{
	char *space = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (space == MAP_FAILED)
		return errno;
	for (size_t i = 0; i < PIECE; i += PAGE)
		space[i] = 1;
	return 0;
}

/* As many sockets as the process may have, each with its buffer full: that is memory of the kernel's. */
static int descriptors(void)
{
	struct rlimit limit;
	int pair[2];

	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max < 1024 ? limit.rlim_max : 1024;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	while (!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair))
		while (write(pair[0], block, CHUNK) > 0)
			;
	return errno == EMFILE ? 0 : errno;
}

static int memory(void)
{
	return pieces("memory", piece_of_memory);
}

static int fds(void)
{
	return pieces("descriptors", descriptors);
}

static int inodes(void)
{
	size_t end = strlen(path);

	for (double count = 0;; count++) {
		int fd;

		if (most && count >= most) {
			say("inodes", count, "enough");
			pause();
		}
		snprintf(path + end, 32, ".%.0f", count);
		while ((fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600)) < 0) {
			if (errno == EACCES || errno == EROFS)
				return errno;
			say("inodes", count, strerror(errno));
			usleep(1000);
		}
		close(fd);
	}
}

static int disk(void)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	double count = 0;

	if (fd < 0)
		return errno;
	for (;;) {
		ssize_t some;

		if (most && count >= most) {
			say("bytes", count, "enough");
			pause();
		}
		some = write(fd, block, CHUNK);
		if (some > 0)
			count += (double)some;
		/* A guest's file system takes what its disk cannot hold: only a flush tells. */
		if (some <= 0 || (long)(count / CHUNK) % 64 == 0)
			if (fsync(fd) || some <= 0) {
				say("bytes", count, strerror(errno));
				usleep(1000);
			}
	}
}

static const struct want {
	const char *name;
	int (*all)(void);
} wants[] = {
	{ "bomb", bomb }, { "pids", processes }, { "memory", memory },
	{ "fds", fds },	  { "inodes", inodes },	 { "disk", disk },
};

PROBE(exhaust, "of=bomb|pids|memory|fds|inodes|disk [dir=DIR] [most=N files or bytes]: a line when it is refused, and "
	       "on it goes, or when it has as many as that")
{
	const char *name = text(args, "of", "");

	all = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (all == MAP_FAILED)
		return errno;
	most = (double)number(args, "most", 0);
	memset(block, 'x', sizeof(block));
	snprintf(path, sizeof(path) - 32, "%s/exhaust", text(args, "dir", "/tmp"));
	for (size_t i = 0; i < sizeof(wants) / sizeof(*wants); i++)
		if (!strcmp(wants[i].name, name))
			return wants[i].all();
	return EINVAL;
}
