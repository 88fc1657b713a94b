/* What a call of the kernel costs: nanoseconds a call, of the calls that programs live on. */
#define _GNU_SOURCE
#include "probe.h"
#include "cost.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EACH(count) for (long left = (count); left > 0; left--)

static int do_getpid(void *of, long count)
{
	(void)of;
	EACH(count)
		syscall(SYS_getpid);
	return 0;
}

static int do_clock(void *of, long count)
{
	struct timespec now;

	(void)of;
	EACH(count)
		if (clock_gettime(CLOCK_MONOTONIC, &now))
			return errno;
	return 0;
}

static int do_read(void *of, long count)
{
	char byte;

	EACH(count)
		if (read(*(int *)of, &byte, 1) != 1)
			return errno ? errno : EIO;
	return 0;
}

static int do_pread(void *of, long count)
{
	char page[4096];

	EACH(count)
		if (pread(*(int *)of, page, sizeof(page), 0) != sizeof(page))
			return errno ? errno : EIO;
	return 0;
}

static int do_open(void *of, long count)
{
	EACH(count) {
		int file = open(of, O_RDONLY | O_CLOEXEC);
		if (file < 0 || close(file))
			return errno;
	}
	return 0;
}

static int do_stat(void *of, long count)
{
	struct stat found;

	EACH(count)
		if (stat(of, &found))
			return errno;
	return 0;
}

/* `of`: the program to be executed, NULL: none */
static int do_fork(void *of, long count)
{
	char *const args[] = { of, "cost_nothing", NULL }, *const none[] = { NULL };
	int status;

	EACH(count) {
		pid_t child = fork();
		if (child < 0)
			return errno;
		if (!child) {
			if (of)
				execve(of, args, none);
			_exit(of ? errno : 0);
		}
		if (waitpid(child, &status, 0) != child)
			return errno;
		if (status)
			return WIFEXITED(status) ? WEXITSTATUS(status) : EIO;
	}
	return 0;
}

static int do_mmap(void *of, long count)
{
	size_t size = *(size_t *)of;

	EACH(count) {
		char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED)
			return errno;
		for (size_t at = 0; at < size; at += 4096)
			*(volatile char *)(memory + at) = 1;
		if (munmap(memory, size))
			return errno;
	}
	return 0;
}

static int do_pipe(void *of, long count)
{
	int *ends = of;
	char byte = 0;

	EACH(count)
		if (write(ends[1], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1)
			return errno ? errno : EIO;
	return 0;
}

struct pipes {
	int there[2], back[2];
};

static void answer_pipe(void *of)
{
	struct pipes *pipes = of;
	char byte;

	while (read(pipes->there[0], &byte, 1) == 1 && write(pipes->back[1], &byte, 1) == 1)
		;
}

static int do_switch(void *of, long count)
{
	struct pipes *pipes = of;
	char byte = 0;

	EACH(count)
		if (write(pipes->there[1], &byte, 1) != 1 || read(pipes->back[0], &byte, 1) != 1)
			return errno ? errno : EIO;
	return 0;
}

/* Hands the word over to the other (1: the child's turn), and sleeps until it is back. */
static int hand_over(int *word, int mine)
{
	__atomic_store_n(word, !mine, __ATOMIC_SEQ_CST);
	if (syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0) < 0)
		return errno;
	while (__atomic_load_n(word, __ATOMIC_SEQ_CST) != mine)
		if (syscall(SYS_futex, word, FUTEX_WAIT, !mine, NULL, NULL, 0) && errno != EAGAIN && errno != EINTR)
			return errno;
	return 0;
}

static void answer_futex(void *of)
{
	int *word = of;

	while (__atomic_load_n(word, __ATOMIC_SEQ_CST) != 1)
		syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0);
	while (!hand_over(word, 1))
		;
}

static int do_futex(void *of, long count)
{
	int error;

	EACH(count) {
		error = hand_over(of, 0);
		if (error)
			return error;
	}
	return 0;
}

static void with_file(const char *key, const char *path, work *does, struct pace pace)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0)
		return not_timed(key, errno);
	timed(key, does, &file, pace);
	close(file);
}

static void between_two(struct pace pace)
{
	struct pair pair;
	struct pipes pipes;
	int error, *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (word == MAP_FAILED)
		not_timed("futex", errno);
	else if ((error = pair_up(&pair, answer_futex, word)))
		not_timed("futex", error);
	else {
		timed("futex", do_futex, word, pace);
		unpair(&pair);
	}

	if (pipe(pipes.there) || pipe(pipes.back))
		return not_timed("switch", errno);
	timed("pipe", do_pipe, pipes.there, pace);
	error = pair_up(&pair, answer_pipe, &pipes);
	if (error)
		return not_timed("switch", error);
	timed("switch", do_switch, &pipes, pace);
	unpair(&pair);
}

PROBE(cost_syscalls, "nanoseconds a call of a spectrum of system calls; ms= a batch, batches=")
{
	struct pace pace = pace_of(args);
	size_t page = 4096, pages = 65536, many = 1 << 20;
	char *self = (char *)own_path();

	timed("getpid", do_getpid, NULL, pace);
	timed("clock_gettime", do_clock, NULL, pace);
	with_file("read", "/dev/zero", do_read, pace);
	with_file("pread", self, do_pread, pace);
	timed("open", do_open, self, pace);
	timed("stat", do_stat, self, pace);
	timed("mmap4k", do_mmap, &page, pace);
	timed("mmap64k", do_mmap, &pages, pace);
	timed("mmap1m", do_mmap, &many, pace);
	between_two(pace);
	timed("fork", do_fork, NULL, pace);
	timed("exec", do_fork, self, pace);
	return 0;
}

PROBE(cost_nothing, "ends at once: what cost_syscalls executes")
{
	return 0;
}
