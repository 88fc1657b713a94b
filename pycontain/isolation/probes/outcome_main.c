/* Attacks, each in a child with a deadline, so that one that is killed does not end the others. */
#define _GNU_SOURCE
#include "outcome.h"
#include "probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern const struct attack __start_attacks[], __stop_attacks[];

const char *const roots[] = { "", "/host", NULL };

static const char *outcome; /* how it was reached */
static char found[128];     /* the decoy's text */
static char first_refusal[96];
static int first_errno;

int done(void)
{
	return outcome != NULL;
}

void reached(const char *how)
{
	if (!outcome)
		outcome = strdup(how);
}

void refused(const char *call)
{
	if (*first_refusal)
		return;
	first_errno = errno;
	snprintf(first_refusal, sizeof(first_refusal), "%s", call);
}

int saw(const void *bytes, size_t size, const char *how)
{
	const char *mark = memmem(bytes, size, "decoy:", 6);
	size_t left, i;

	if (!mark || outcome)
		return 0;
	left = size - (size_t)(mark - (const char *)bytes);
	for (i = 0; i < left && i < sizeof(found) - 1 && mark[i] > ' ' && mark[i] < 127; i++)
		found[i] = mark[i];
	found[i] = 0;
	reached(how);
	return 1;
}

int read_decoy(int fd, const char *how)
{
	char bytes[4096];
	ssize_t size;
	int is;

	if (fd < 0) {
		refused(how);
		return 0;
	}
	size = read(fd, bytes, sizeof(bytes));
	if (size < 0)
		refused(how);
	is = size > 0 && saw(bytes, (size_t)size, how);
	close(fd);
	return is;
}

void each_process(const char *proc, void (*visit)(const char *proc, int pid, char **args), char **args)
{
	DIR *all = opendir(proc);
	struct dirent *entry;

	if (!all) {
		refused("read /proc");
		return;
	}
	while (!done() && (entry = readdir(all)))
		if (atoi(entry->d_name) > 0)
			visit(proc, atoi(entry->d_name), args);
	closedir(all);
}

int own_mounts(void)
{
	if (unshare(CLONE_NEWNS)) {
		refused("unshare(CLONE_NEWNS)");
		return -1;
	}
	mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL); /* not where / is no mount point: a chroot */
	return 0;
}

static int write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), bad;

	if (fd < 0)
		return -1;
	bad = write(fd, value, strlen(value)) < 0;
	close(fd);
	return -bad;
}

int new_user_namespace(int others)
{
	char map[40];
	uid_t user = geteuid();
	gid_t group = getegid();

	if (unshare(CLONE_NEWUSER | others)) {
		refused("unshare(CLONE_NEWUSER)");
		return -1;
	}
	snprintf(map, sizeof(map), "0 %u 1", user);
	write_file("/proc/self/uid_map", map); /* without a map it has every right there all the same */
	write_file("/proc/self/setgroups", "deny");
	snprintf(map, sizeof(map), "0 %u 1", group);
	write_file("/proc/self/gid_map", map);
	if (others & CLONE_NEWNS)
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	return 0;
}

const char *mount_point(void)
{
	static const char *const any[] = { "/mnt", "/opt", "/srv", "/var", "/etc", "/dev", NULL };
	struct stat status;

	for (int i = 0; any[i]; i++)
		if (!lstat(any[i], &status) && S_ISDIR(status.st_mode))
			return any[i];
	return "/";
}

const char *const *places(void)
{
	static const char *all[] = { NULL, "/run", "/tmp", "/dev/shm", "/dev", "/", NULL };

	if (!all[0] && !unshare(CLONE_NEWNS)) {
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
		if (!mount("tmpfs", mount_point(), "tmpfs", 0, "mode=755"))
			all[0] = mount_point();
	}
	return all[0] ? all : all + 1;
}

const char *procfs(void)
{
	struct statfs status;

	if (!statfs("/proc", &status) && status.f_type == PROC_SUPER_MAGIC)
		return "/proc";
	if (own_mounts())
		return NULL;
	if (!mount("proc", mount_point(), "proc", 0, NULL))
		return mount_point();
	refused("mount proc");
	return NULL;
}

int in_first_user_namespace(void)
{
	FILE *file = fopen("/proc/self/uid_map", "re");
	unsigned inside = 1, outside = 1, count = 0;
	int read = file ? fscanf(file, "%u %u %u", &inside, &outside, &count) : 0;

	if (file)
		fclose(file);
	return read == 3 && !inside && !outside && count == 4294967295u;
}

static void run(const struct attack *attack, char **args)
{
	json_text("attack", attack->name);
	attack->run(args);
	json_number("reached", done());
	if (done()) {
		json_text("how", outcome);
		json_text("found", found);
	} else {
		json_text("how", first_refusal);
		json_number("errno", first_errno);
	}
	json_line();
}

/* The child's whole answer, or none where it died or did not come to an end. */
static size_t answer(int fd, int pid, long ms, char *bytes, size_t size, int *status)
{
	uint64_t until = now_ns() + (uint64_t)ms * 1000000;
	struct pollfd one = { .fd = fd, .events = POLLIN };
	size_t used = 0;

	for (;;) {
		uint64_t now = now_ns();
		ssize_t some = -1;

		if (now < until && used < size && poll(&one, 1, (int)((until - now) / 1000000) + 1) > 0)
			some = read(fd, bytes + used, size - used);
		if (some <= 0)
			break;
		used += (size_t)some;
	}
	kill(pid, SIGKILL); /* nothing to a child that has ended */
	while (waitpid(pid, status, __WALL) < 0 && errno == EINTR)
		;
	return used;
}

void json_self(void)
{
	struct utsname names;
	struct timespec boot = { 0 };
	struct stat status;
	char id[64] = "";
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, id, sizeof(id) - 1);

	close(fd);
	if (size > 0)
		id[strcspn(id, "\n")] = 0;
	uname(&names);
	clock_gettime(CLOCK_BOOTTIME, &boot);
	json_text("attack", "self");
	json_text("boot_id", id);
	json_text("release", names.release);
	json_text("version", names.version);
	json_number("boottime", (double)boot.tv_sec + (double)boot.tv_nsec / 1e9);
	json_number("pid_namespace", stat("/proc/self/ns/pid", &status) ? 0 : (double)status.st_ino);
	json_line();
}

static int wanted(const char *list, const char *name)
{
	size_t size = strlen(name);

	for (; list; list = strchr(list, ',') ? strchr(list, ',') + 1 : NULL)
		if (!strncmp(list, name, size) && (!list[size] || list[size] == ','))
			return 1;
	return 0;
}

PROBE(outcomes, "tries attacks and says what each reached: only=NAME,NAME... ms=DEADLINE, and the decoys by name")
{
	const char *only = text(args, "only", NULL);
	long ms = number(args, "ms", 5000);
	char bytes[8192];
	int status, pipes[2];
	pid_t pid;

	json_self();
	for (const struct attack *attack = __start_attacks; attack < __stop_attacks; attack++) {
		size_t size;

		if (only && !wanted(only, attack->name))
			continue;
		if (pipe2(pipes, O_CLOEXEC))
			return errno;
		pid = fork();
		if (pid < 0)
			return errno;
		if (!pid) {
			dup2(pipes[1], 1);
			close(pipes[0]);
			close(pipes[1]);
			run(attack, args);
			_exit(0);
		}
		close(pipes[1]);
		size = answer(pipes[0], pid, ms, bytes, sizeof(bytes), &status);
		close(pipes[0]);
		if (size && bytes[size - 1] == '\n') {
			if (write(1, bytes, size) < 0)
				return errno;
			continue;
		}
		json_text("attack", attack->name);
		json_number("reached", 0);
		json_number("signal", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
		json_line();
	}
	return 0;
}
