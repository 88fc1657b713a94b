/* Files of the kernel's own file systems, capabilities, devices, and programs that give rights. */
#define _GNU_SOURCE
#include "probe.h"
#include "surface.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

struct tally {
	long files, readable, writable; /* regular files */
	long character, block;          /* devices that may be opened */
	long rights;                    /* set-user-ID and set-group-ID programs */
};

/* What the mount that a name lies on forbids. */
static unsigned long mount_flags(int directory, const char *name)
{
	int place = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct statvfs mount = { 0 };

	if (place >= 0) {
		if (fstatvfs(place, &mount))
			mount.f_flag = 0;
		close(place);
	}
	return mount.f_flag;
}

static bool gives_rights(mode_t mode)
{
	return (mode & S_ISUID && mode & S_IXUSR) || (mode & S_ISGID && mode & S_IXGRP);
}

/* Nothing is opened: to open a watchdog starts it, and to close tracefs' free_buffer frees a buffer. access(2) asks
 * the same of modes, capabilities, read-only mounts, and of a cgroup's rules for devices. */
static void look_at(int directory, const char *name, mode_t mode, struct tally *tally)
{
	bool readable = !faccessat(directory, name, R_OK, 0), writable = !faccessat(directory, name, W_OK, 0);

	if (S_ISREG(mode)) {
		tally->files++;
		tally->readable += readable;
		tally->writable += writable;
		tally->rights += gives_rights(mode) && !(mount_flags(directory, name) & ST_NOSUID);
	} else if ((readable || writable) && !(mount_flags(directory, name) & ST_NODEV)) {
		tally->character += S_ISCHR(mode);
		tally->block += S_ISBLK(mode);
	}
}

/* Files of cgroups come and go with what the host runs, as those of processes do. */
static bool of_cgroups(int directory)
{
	struct statfs found;

	return !fstatfs(directory, &found) &&
	       (found.f_type == CGROUP_SUPER_MAGIC || found.f_type == CGROUP2_SUPER_MAGIC);
}

/* Closes `directory`. Names of digits alone are processes where `processes`. What cannot be read is not there. */
static void walk(int directory, int depth, bool processes, struct tally *tally)
{
	DIR *stream = fdopendir(directory);

	if (!stream) {
		close(directory);
		return;
	}
	for (struct dirent *entry; (entry = readdir(stream));) {
		const char *name = entry->d_name;
		struct stat found;

		if (!strcmp(name, ".") || !strcmp(name, "..") || (processes && !name[strspn(name, "0123456789")]) ||
		    entry->d_type == DT_LNK || fstatat(directory, name, &found, AT_SYMLINK_NOFOLLOW))
			continue;
		if (!S_ISDIR(found.st_mode)) {
			look_at(directory, name, found.st_mode, tally);
		} else if (depth) {
			int below = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

			if (below >= 0 && of_cgroups(below))
				close(below);
			else if (below >= 0)
				walk(below, depth - 1, false, tally);
		}
	}
	closedir(stream);
}

static struct tally below(const char *path, int depth, bool processes)
{
	int directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct tally tally = { 0 };

	if (directory >= 0)
		walk(directory, depth, processes, &tally);
	return tally;
}

static void say_files(const char *key, struct tally tally)
{
	json_numbers(key, (double[]){ (double)tally.files, (double)tally.readable, (double)tally.writable }, 3);
}

/* The number of capabilities in a set of /proc/self/status. */
static int capabilities(const char *status, const char *set)
{
	const char *line = strstr(status, set);

	return line ? __builtin_popcountll(strtoull(line + strlen(set), NULL, 16)) : 0;
}

PROBE(surface_files, "files of /proc and /sys, devices, set-user-ID programs, capabilities: how many there are")
{
	static const char *const programs[] = { "/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin",
						"/usr/local/sbin", "/lib", "/usr/lib", "/usr/libexec" };
	char *status = surface_read("/proc/self/status", 65536);
	struct tally devices = below("/dev", 8, false);
	long rights = 0;

	if (!status)
		return errno;
	say_files("proc", below("/proc", 32, true));
	say_files("sys", below("/sys", 32, false));
	json_numbers("devices", (double[]){ (double)devices.character, (double)devices.block }, 2);
	for (size_t i = 0; i < sizeof(programs) / sizeof(*programs); i++)
		rights += below(programs[i], strstr(programs[i], "lib") ? 1 : 0, false).rights;
	json_number("setuid", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? 0 : (double)rights);
	json_number("effective", capabilities(status, "CapEff:"));
	json_number("bounding", capabilities(status, "CapBnd:"));
	free(status);
	return 0;
}
