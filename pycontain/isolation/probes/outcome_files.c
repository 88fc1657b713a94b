/* Attacks on the host's files. */
#define _GNU_SOURCE
#include "outcome.h"
#include "probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

ATTACK(file_path)
{
	char path[PATH_MAX];

	for (int i = 0; roots[i] && !done(); i++) {
		snprintf(path, sizeof(path), "%s%s", roots[i], text(args, "file", "/"));
		read_decoy(open(path, O_RDONLY | O_CLOEXEC), "open of its path");
	}
}

ATTACK(file_write)
{
	char path[PATH_MAX];
	int fd;

	for (int i = 0; roots[i] && !done(); i++) {
		snprintf(path, sizeof(path), "%s%s", roots[i], text(args, "file", "/"));
		fd = open(path, O_RDWR | O_CLOEXEC); /* and nothing is written */
		read_decoy(fd, "open of its path for writing");
	}
}

static void by_root(const char *proc, int pid, char **args)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%d/root%s", proc, pid, text(args, "file", "/"));
	read_decoy(open(path, O_RDONLY | O_CLOEXEC), "/proc/PID/root of another process");
}

ATTACK(file_proc_root)
{
	const char *proc = procfs();

	if (proc)
		each_process(proc, by_root, args);
}

static void by_directory(const char *proc, int pid, char **args)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%d/cwd/" UP "%s", proc, pid, text(args, "file", "/"));
	read_decoy(open(path, O_RDONLY | O_CLOEXEC), "/proc/PID/cwd of another process");
}

ATTACK(file_proc_cwd)
{
	const char *proc = procfs();

	if (proc)
		each_process(proc, by_directory, args);
}

/* An inode is opened by its number, whatever is mounted where: any descriptor of the same file system will do. */
ATTACK(file_handle)
{
	static const char *const same[] = { "/", "/host", "/run", "/tmp", "/dev/shm", "/etc/hosts", NULL };
	const char *given = text(args, "handle", "0:"), *hex = strchr(given, ':') + 1;
	const char *near = text(args, "near", "/");
	struct {
		struct file_handle handle;
		unsigned char bytes[MAX_HANDLE_SZ];
	} all = { .handle = { .handle_bytes = (unsigned)strlen(hex) / 2, .handle_type = atoi(given) } };
	char byte[3] = "";

	for (size_t i = 0; i < all.handle.handle_bytes && i < sizeof(all.bytes); i++) {
		memcpy(byte, hex + 2 * i, 2);
		all.bytes[i] = (unsigned char)strtoul(byte, NULL, 16);
	}
	for (int i = -1; (i < 0 || same[i]) && !done(); i++) {
		int mounted = open(i < 0 ? near : same[i], O_RDONLY | O_CLOEXEC), fd;

		if (mounted < 0)
			continue;
		fd = open_by_handle_at(mounted, &all.handle, O_RDONLY | O_CLOEXEC);
		if (fd < 0 && errno == ESTALE)
			refused("open_by_handle_at: not on this file system");
		else
			read_decoy(fd, "open_by_handle_at");
		close(mounted);
	}
}

/* A second chroot leaves the working directory outside of the first one. And where the root directory is a mount that
 * was moved over the host's, the host's is there again when it is taken away. */
ATTACK(root_escape)
{
	int here = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int namespace = -1;
	char path[PATH_MAX];

	snprintf(path, sizeof(path), UP "%s", text(args, "file", "/"));
	if (chroot(mount_point()) || fchdir(here))
		refused("chroot");
	else if (read_decoy(open(path, O_RDONLY | O_CLOEXEC), "upwards from outside of a second chroot"))
		return;
	if (fchdir(here) || chroot(".") || own_mounts())
		return;
	namespace = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	if (umount2("/", MNT_DETACH) || setns(namespace, CLONE_NEWNS))
		refused("umount of the root directory");
	else
		read_decoy(open(text(args, "file", "/"), O_RDONLY | O_CLOEXEC), "an umount of the root directory");
}

static void join_mounts(const char *proc, int pid, char **args)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/%d/ns/mnt", proc, pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		refused("open of /proc/PID/ns/mnt");
		return;
	}
	if (setns(fd, CLONE_NEWNS))
		refused("setns");
	else
		read_decoy(open(text(args, "file", "/"), O_RDONLY | O_CLOEXEC), "setns to the mount namespace of another process");
	close(fd);
}

ATTACK(host_namespaces)
{
	const char *proc = procfs();

	if (!proc)
		return;
	join_mounts(proc, 1, args);
	if (!done())
		each_process(proc, join_mounts, args);
}

/* What whoever started this has left open, and where it stands. */
ATTACK(descriptors)
{
	char path[PATH_MAX], how[64];

	snprintf(path, sizeof(path), UP "%s", text(args, "file", "/"));
	read_decoy(open(path, O_RDONLY | O_CLOEXEC), "upwards from the working directory");
	for (int fd = 0; fd < 1024 && !done(); fd++) {
		if (fcntl(fd, F_GETFD) < 0)
			continue;
		snprintf(how, sizeof(how), "upwards from descriptor %d", fd);
		read_decoy(openat(fd, path, O_RDONLY | O_CLOEXEC), how);
	}
}

/* The program that a process executes: to write to it is to have the next run of it. A file that is executed just
 * now answers ETXTBSY, after the check of rights; it can be written to as soon as it has ended. */
static void by_program(const char *proc, int pid, char **args)
{
	struct stat mine, other;
	char path[64], target[PATH_MAX], how[PATH_MAX + 64];
	ssize_t size;
	int fd;

	(void)args;
	snprintf(path, sizeof(path), "%s/%d/exe", proc, pid);
	if (stat("/proc/self/exe", &mine) || stat(path, &other) || (mine.st_dev == other.st_dev && mine.st_ino == other.st_ino))
		return;
	size = readlink(path, target, sizeof(target) - 1);
	target[size < 0 ? 0 : size] = 0;
	fd = open(path, O_WRONLY | O_CLOEXEC); /* and nothing is written */
	if (fd >= 0 || errno == ETXTBSY) {
		snprintf(how, sizeof(how), "open for writing of the program of process %d, %s", pid, target);
		reached(how);
	} else {
		refused("open of /proc/PID/exe for writing");
	}
	if (fd >= 0)
		close(fd);
}

ATTACK(program_file)
{
	const char *proc = procfs();

	if (proc)
		each_process(proc, by_program, args);
}
