/* What files cost, in one directory. */
#define _GNU_SOURCE
#include "probe.h"
#include "cost.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 4096, CHUNK = 1 << 20 };

struct file {
	char name[PATH_MAX], other[PATH_MAX];
	int fd;
	long blocks, place; /* in blocks of 4 KiB; in MiB */
	uint64_t state;
};

static int do_open(void *of, long count)
{
	struct file *file = of;

	for (; count > 0; count--) {
		int fd = open(file->name, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || close(fd))
			return errno;
	}
	return 0;
}

static int do_create(void *of, long count)
{
	struct file *file = of;

	for (; count > 0; count--) {
		int fd = open(file->other, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (fd < 0 || close(fd) || unlink(file->other))
			return errno;
	}
	return 0;
}

static int do_random(void *of, long count)
{
	struct file *file = of;
	char block[BLOCK];

	for (; count > 0; count--) {
		off_t at = (off_t)(next_random(&file->state) % (uint64_t)file->blocks) * BLOCK;
		if (pread(file->fd, block, BLOCK, at) != BLOCK)
			return errno ? errno : EIO;
	}
	return 0;
}

static char chunk[CHUNK];

/* A new file every time, so that the file system has to find room for it; until it says that it is on the disk. */
static int do_write(void *of, long count)
{
	struct file *file = of;

	for (; count > 0; count--) {
		if (ftruncate(file->fd, 0))
			return errno;
		for (off_t at = 0; at < (off_t)file->blocks * BLOCK; at += CHUNK)
			if (pwrite(file->fd, chunk, CHUNK, at) != CHUNK)
				return errno ? errno : EIO;
		if (fsync(file->fd))
			return errno;
	}
	return 0;
}

static int do_read(void *of, long count)
{
	struct file *file = of;

	for (; count > 0; count--) {
		file->place = (file->place + 1) % (file->blocks / (CHUNK / BLOCK));
		if (pread(file->fd, chunk, CHUNK, (off_t)file->place * CHUNK) != CHUNK)
			return errno ? errno : EIO;
	}
	return 0;
}

PROBE(cost_file, "nanoseconds of open, create, reads of 4 KiB and 1 MiB, and a file's writing; dir=, mib=, ms=, batches=, keep=1")
{
	struct pace pace = pace_of(args), once = pace;
	struct file file = { .blocks = number(args, "mib", 16) * (CHUNK / BLOCK), .state = 1 };
	const char *directory = text(args, "dir", "/tmp");
	uint64_t state = 2;
	int error;

	snprintf(file.name, sizeof(file.name), "%s/cost.%d", directory, (int)getpid());
	snprintf(file.other, sizeof(file.other), "%s/cost.%d.new", directory, (int)getpid());
	for (size_t i = 0; i < CHUNK; i++) /* nothing that a layer below could store in less */
		chunk[i] = (char)next_random(&state);
	file.fd = open(file.name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (file.fd < 0)
		return errno;
	once.most = 1;
	if (once.batches > 5) /* a disk is not to be worn out */
		once.batches = 5;
	json_number("bytes", (double)file.blocks * BLOCK);
	error = do_write(&file, 1); /* what was left to be written before is not ours to wait for */
	if (!error) {
		timed("write", do_write, &file, once);
		timed("read", do_read, &file, pace);
		timed("random", do_random, &file, pace);
		timed("open", do_open, &file, pace);
		timed("create", do_create, &file, pace);
	}
	if (!number(args, "keep", 0) && unlink(file.name) && !error)
		error = errno;
	return error;
}

PROBE(cost_cold, "nanoseconds of a 4 KiB read of blocks that were not read before; file=, count=, batches=")
{
	struct pace pace = pace_of(args);
	long count = number(args, "count", 64), blocks, *order;
	double values[64];
	char block[BLOCK];
	uint64_t state = 1;
	struct stat found;
	int fd = open(text(args, "file", ""), O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &found))
		return errno;
	/* no block beside the one that is asked for is to be read ahead */
	if ((errno = posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM)))
		return errno;
	blocks = found.st_size / BLOCK;
	order = calloc((size_t)blocks + 1, sizeof(*order));
	if (!order || blocks < count * pace.batches)
		return order ? EINVAL : ENOMEM;
	for (long i = 0; i < blocks; i++) { /* every block once, in random order */
		long j = (long)(next_random(&state) % (uint64_t)(i + 1));
		order[i] = order[j];
		order[j] = i;
	}
	for (long batch = 0, n = 0; batch < pace.batches; batch++) {
		uint64_t start = now_ns();
		for (long i = 0; i < count; i++, n++)
			if (pread(fd, block, BLOCK, order[n] * BLOCK) != BLOCK)
				return errno ? errno : EIO;
		values[batch] = (double)(now_ns() - start) / (double)count;
	}
	json_numbers("cold", values, (size_t)pace.batches);
	return 0;
}
