/* Attacks on the host's disks and memory through device files. Everything is opened for reading only. */
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
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* A device node of one's own is opened somewhere; -1 where the kernel refuses to make or to open it everywhere. */
static int own_node(mode_t kind, dev_t device, int flags)
{
	char path[PATH_MAX];
	int fd = -1;

	for (const char *const *place = places(); *place && fd < 0; place++) {
		snprintf(path, sizeof(path), "%s/.node-%d", *place, getpid());
		if (mknod(path, kind | 0600, device)) {
			refused("mknod");
			continue;
		}
		fd = open(path, flags | O_CLOEXEC);
		if (fd < 0)
			refused("open of a device node of its own");
		unlink(path);
	}
	return fd;
}

static dev_t disk(char **args)
{
	const char *given = text(args, "disk", "0:0"), *minor = strchr(given, ':');

	return makedev((unsigned)atoi(given), (unsigned)atoi(minor ? minor + 1 : "0"));
}

ATTACK(disk_own_node)
{
	int fd = own_node(S_IFBLK, disk(args), O_RDONLY | O_NONBLOCK);

	if (fd >= 0)
		read_decoy(fd, "a device node of its own");
}

ATTACK(disk_given_node)
{
	char path[PATH_MAX];
	struct stat status;

	errno = ENOENT;
	for (int i = 0; roots[i] && !done(); i++) {
		DIR *all;
		struct dirent *entry;

		snprintf(path, sizeof(path), "%s/dev", roots[i]);
		all = opendir(path);
		while (all && !done() && (entry = readdir(all))) {
			snprintf(path, sizeof(path), "%s/dev/%s", roots[i], entry->d_name);
			if (!lstat(path, &status) && S_ISBLK(status.st_mode) && status.st_rdev == disk(args))
				read_decoy(open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), "the device node in /dev");
		}
		if (all)
			closedir(all);
	}
	errno = ENOENT;
	refused("a search for its node in /dev");
}

static void mount_node(const char *node)
{
	char path[PATH_MAX];

	if (mount(node, mount_point(), "ext4", MS_RDONLY, NULL)) {
		refused("mount");
		return;
	}
	snprintf(path, sizeof(path), "%s/secret", mount_point());
	read_decoy(open(path, O_RDONLY | O_CLOEXEC), "a mount of the disk");
	umount2(mount_point(), MNT_DETACH);
}

/* With what rights there are, and then with those of a new user namespace. */
ATTACK(disk_mount)
{
	char path[PATH_MAX];

	for (int turn = 0; turn < 2 && !done(); turn++) {
		if (turn && new_user_namespace(CLONE_NEWNS))
			break;
		for (const char *const *place = places(); *place && !done(); place++) {
			snprintf(path, sizeof(path), "%s/.disk-%d", *place, getpid());
			if (mknod(path, S_IFBLK | 0600, disk(args))) {
				refused("mknod");
				continue;
			}
			mount_node(path);
			unlink(path);
		}
		for (int i = 0; roots[i] && !done(); i++) {
			snprintf(path, sizeof(path), "%s/dev/loop%d", roots[i], minor(disk(args)));
			mount_node(path);
		}
	}
}

ATTACK(kernel_memory)
{
	static const char *const files[] = { "/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore", NULL };
	static const int minors[] = { 1, 2, 4 };
	char first;
	int fd;

	for (int i = 0; files[i] && !done(); i++) {
		fd = open(files[i], O_RDONLY | O_CLOEXEC);
		if (fd < 0 && errno != ENOENT)
			refused(files[i]);
		if (fd >= 0 && (strcmp(files[i], "/proc/kcore") || read(fd, &first, 1) == 1)) /* a masked one is empty */
			reached(files[i]);
		if (fd >= 0)
			close(fd);
	}
	for (int i = 0; i < 3 && !done(); i++) {
		fd = own_node(S_IFCHR, makedev(1, (unsigned)minors[i]), O_RDONLY);
		if (fd >= 0)
			reached("a device node of its own for the memory of the machine");
	}
}

ATTACK(kernel_log)
{
	char bytes[4096];
	int size = klogctl(3 /* SYSLOG_ACTION_READ_ALL */, bytes, sizeof(bytes)), fd;

	if (size > 0) {
		reached("syslog(SYSLOG_ACTION_READ_ALL)");
		return;
	}
	refused("syslog(SYSLOG_ACTION_READ_ALL)");
	fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		fd = own_node(S_IFCHR, makedev(1, 11), O_RDONLY | O_NONBLOCK);
	if (fd >= 0 && read(fd, bytes, sizeof(bytes)) > 0)
		reached("/dev/kmsg");
}
