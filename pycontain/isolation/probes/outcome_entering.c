/* An attack by who is in a container already, on whoever enters it from outside. */
#define _GNU_SOURCE
#include "outcome.h"
#include "probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 64

static struct { dev_t device; ino_t inode; } programs[MOST];
static int known;
static char found[128], how[64];

/* The program that the process executes at this moment, and whether it could be written to. One that is executed
 * answers ETXTBSY, after the check of rights. */
static void program(const char *directory)
{
	char path[PATH_MAX];
	struct stat status;
	int held, fd;

	snprintf(path, sizeof(path), "%s/exe", directory);
	held = open(path, O_PATH | O_CLOEXEC);
	if (held < 0 || fstat(held, &status)) {
		if (held >= 0)
			close(held);
		return;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", held);
	fd = open(path, O_WRONLY | O_CLOEXEC); /* and nothing is written */
	if (fd >= 0 || errno == ETXTBSY) {
		int i = 0;

		while (i < known && (programs[i].device != status.st_dev || programs[i].inode != status.st_ino))
			i++;
		if (i == known && known < MOST) {
			programs[i].device = status.st_dev;
			programs[i].inode = status.st_ino;
			known++;
		}
	}
	if (fd >= 0)
		close(fd);
	close(held);
}

static void decoy_at(const char *directory, const char *name, const char *file)
{
	char path[PATH_MAX], bytes[128];
	ssize_t size;
	int fd;

	if (*found)
		return;
	snprintf(path, sizeof(path), "%s/%s/" UP "%s", directory, name, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	size = fd < 0 ? -1 : read(fd, bytes, sizeof(bytes) - 1);
	if (fd >= 0)
		close(fd);
	if (size <= 6 || memcmp(bytes, "decoy:", 6))
		return;
	bytes[size] = 0;
	bytes[strcspn(bytes, "\n")] = 0;
	strcpy(found, bytes);
	snprintf(how, sizeof(how), "/proc/PID/%s of who enters", name);
}

static void look(const char *directory, const char *file)
{
	char path[PATH_MAX], name[300];
	struct dirent *entry;
	DIR *all;

	program(directory);
	decoy_at(directory, "cwd", file);
	decoy_at(directory, "root", file);
	snprintf(path, sizeof(path), "%s/fd", directory);
	all = opendir(path);
	while (all && !*found && (entry = readdir(all))) {
		if (*entry->d_name == '.')
			continue;
		snprintf(name, sizeof(name), "fd/%s", entry->d_name);
		decoy_at(directory, name, file);
	}
	if (all)
		closedir(all);
}

PROBE(entering, "follows processes that were not there before while they live, until count=N have ended, or none has "
		"come for 3 seconds: ms=DEADLINE file=PATH")
{
	static unsigned char before[1 << 22]; /* by process number */
	static unsigned alive[256], now[256];
	uint64_t until = now_ns() + (uint64_t)number(args, "ms", 20000) * 1000000, last = 0;
	char directory[300], line[MOST * 44] = "";
	const char *file = text(args, "file", "/");
	long count = number(args, "count", 1), ended = 0;
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	int living = 0;

	if (!proc)
		return errno;
	while ((entry = readdir(proc)))
		before[(unsigned)atoi(entry->d_name) % sizeof(before)] = 1;
	json_self();
	while (ended < count && now_ns() < until && (!ended || now_ns() < last + 3000000000)) {
		int some = 0; /* one that was not seen is not waited for: another program may have had the processor */

		rewinddir(proc);
		while ((entry = readdir(proc)) && some < 256) {
			unsigned pid = (unsigned)atoi(entry->d_name) % sizeof(before);

			if (!pid || before[pid])
				continue;
			now[some++] = pid;
			snprintf(directory, sizeof(directory), "/proc/%s", entry->d_name);
			look(directory, file);
		}
		for (int i = 0; i < living; i++) {
			int j = 0;

			while (j < some && now[j] != alive[i])
				j++;
			ended += j == some;
		}
		if (some)
			last = now_ns();
		memcpy(alive, now, sizeof(alive));
		living = some;
	}
	for (int i = 0; i < known; i++)
		snprintf(line + strlen(line), sizeof(line) - strlen(line), "%s%llu:%llu", i ? "," : "",
			 (unsigned long long)programs[i].device, (unsigned long long)programs[i].inode);
	json_text("attack", "entering");
	json_number("ended", (double)ended);
	json_text("found", found);
	json_text("how", how);
	json_text("programs", line);
	return 0;
}
