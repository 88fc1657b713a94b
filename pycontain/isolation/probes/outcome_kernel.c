/* Attacks on what all processes of a kernel share. Files are opened for writing and never written to; system calls
 * carry values that the kernel refuses after its check of rights, so that nothing can come of them. */
#define _GNU_SOURCE
#include "outcome.h"
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <unistd.h>

/* Whether a file can be opened for writing. Files that are not there refuse nothing unless none is there. */
static int writable(const char *base, const char *name, const char *by)
{
	char path[PATH_MAX], how[PATH_MAX + 64];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", base, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0) {
		snprintf(how, sizeof(how), "open of %s for writing", path);
		if (errno != ENOENT)
			refused(how);
		return 0;
	}
	close(fd);
	snprintf(how, sizeof(how), "open of %s for writing%s", path, by);
	reached(how);
	return 1;
}

static void any_writable(const char *base, const char *const *names, const char *by)
{
	for (int i = 0; names[i] && !done(); i++)
		writable(base, names[i], by);
}

/* A fresh procfs or sysfs in namespaces of one's own shows its files without the masks of /proc and /sys. A procfs
 * is of the process namespace of who mounts it: the child of the one that has unshared it. */
static void fresh(const char *type, int namespaces, const char *const *names)
{
	int status;
	pid_t child;

	if (new_user_namespace(CLONE_NEWNS | namespaces))
		return;
	child = fork();
	if (!child) {
		if (mount(type, mount_point(), type, 0, NULL))
			_exit(255);
		for (int i = 0; names[i]; i++) {
			char path[PATH_MAX];

			snprintf(path, sizeof(path), "%s/%s", mount_point(), names[i]);
			if (open(path, O_WRONLY | O_CLOEXEC) >= 0)
				_exit(i + 1);
		}
		_exit(0);
	}
	if (child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) % 255) {
		char how[PATH_MAX + 64];

		snprintf(how, sizeof(how), "open of %s for writing, in a file system mounted in a new user namespace",
			 names[WEXITSTATUS(status) - 1]);
		reached(how);
	}
}

static void settings(const char *base, const char *type, int namespaces, const char *const *names)
{
	any_writable(base, names, "");
	errno = ENOENT;
	refused("a search for a file that is a door to it");
	if (!done() && !own_mounts()) { /* the masks are mounts: with CAP_SYS_ADMIN they can be made writable, or left */
		static const char *const masks[] = { "sys", "sysrq-trigger", NULL };
		char path[PATH_MAX];

		for (int i = 0; masks[i]; i++) {
			snprintf(path, sizeof(path), "%s/%s", base, masks[i]);
			umount2(path, MNT_DETACH);
		}
		mount(NULL, base, NULL, MS_REMOUNT | MS_BIND, NULL);
		any_writable(base, names, ", after a change of its mount");
		if (!done() && !mount(type, mount_point(), type, 0, NULL))
			any_writable(mount_point(), names, ", in a file system of its own");
	}
	if (!done())
		fresh(type, namespaces, names);
}

ATTACK(core_pattern)
{
	static const char *const names[] = { "sys/kernel/core_pattern", NULL };

	settings("/proc", "proc", CLONE_NEWPID, names);
}

ATTACK(sysrq)
{
	static const char *const names[] = { "sysrq-trigger", "sys/kernel/sysrq", NULL };

	settings("/proc", "proc", CLONE_NEWPID, names);
}

ATTACK(sysctl)
{
	static const char *const names[] = { "sys/kernel/modprobe", "sys/kernel/panic", "sys/vm/drop_caches",
					     "sys/vm/overcommit_memory", "sys/fs/file-max", NULL };

	settings("/proc", "proc", CLONE_NEWPID, names);
}

ATTACK(sysfs)
{
	static const char *const names[] = { "kernel/uevent_helper", "kernel/mm/transparent_hugepage/enabled",
					     "power/state", "kernel/profiling", "kernel/mm/ksm/run",
					     "module/kernel/parameters/consoleblank", NULL };

	settings("/sys", "sysfs", CLONE_NEWNET, names);
}

/* A hierarchy of version 1 names the program that the kernel is to run when a cgroup becomes empty, in a file of its
 * root directory. Only who has CAP_SYS_ADMIN in the first user namespace may write there, since Linux 5.17: an open in
 * another one proves nothing. */
static int release_agent_at(const char *directory, const char *by, int proves)
{
	char path[PATH_MAX];
	int fd;

	if (proves)
		return writable(directory, "release_agent", by);
	snprintf(path, sizeof(path), "%s/release_agent", directory);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	close(fd);
	errno = EPERM;
	refused("release_agent was opened, but not in the first user namespace");
	return 1;
}

static void release_agents(const char *by, int proves)
{
	FILE *mounts = fopen("/proc/self/mounts", "re"), *kinds;
	char line[1024], directory[512], type[64], name[64], how[128];
	int number, is = 0;

	while (mounts && !is && fgets(line, sizeof(line), mounts))
		if (sscanf(line, "%*s %511s %63s", directory, type) == 2 && !strcmp(type, "cgroup"))
			is = release_agent_at(directory, by, proves);
	if (mounts)
		fclose(mounts);
	kinds = fopen("/proc/cgroups", "re"); /* those of version 1 have a number */
	while (kinds && !is && fgets(line, sizeof(line), kinds)) {
		if (sscanf(line, "%63s %d", name, &number) != 2 || !number)
			continue;
		if (mount("cgroup", mount_point(), "cgroup", 0, name)) {
			snprintf(how, sizeof(how), "mount of the cgroup hierarchy %s", name);
			refused(how);
			continue;
		}
		snprintf(how, sizeof(how), " in a mount of the hierarchy %s%s", name, by);
		is = release_agent_at(mount_point(), how, proves);
		umount2(mount_point(), MNT_DETACH);
	}
	if (kinds)
		fclose(kinds);
}

ATTACK(release_agent)
{
	if (!own_mounts())
		release_agents("", in_first_user_namespace());
	if (!done() && !new_user_namespace(CLONE_NEWNS | CLONE_NEWCGROUP))
		release_agents(", in new namespaces", 0);
	errno = ENOENT;
	refused("a search for release_agent");
}

/* Limits of others: a file in a hierarchy's root directory, the inode of which has the number 1. */
ATTACK(cgroup_host)
{
	FILE *mounts = fopen("/proc/self/mounts", "re");
	static const char *const names[] = { "cgroup.procs", "tasks", "cgroup.subtree_control", NULL };
	char line[1024], directory[512], type[64];
	struct stat status;

	while (mounts && !done() && fgets(line, sizeof(line), mounts)) {
		if (sscanf(line, "%*s %511s %63s", directory, type) != 2 || strncmp(type, "cgroup", 6))
			continue;
		if (!stat(directory, &status) && status.st_ino == 1)
			any_writable(directory, names, " at the root of a hierarchy");
	}
	if (mounts)
		fclose(mounts);
	errno = ENOENT;
	refused("a search for the root of a hierarchy");
}

/* init_module(2): EPERM comes before the image is looked at, ENOEXEC after that. */
ATTACK(kernel_module)
{
	char image[256] = "no image of a module";

	if (syscall(SYS_init_module, image, sizeof(image), "") && errno == ENOEXEC)
		reached("init_module: the image was looked at");
	else
		refused("init_module");
}

/* The tick is set to what it is. */
ATTACK(clock)
{
	struct timex now = { .modes = 0 };

	if (syscall(SYS_adjtimex, &now) < 0) {
		refused("adjtimex");
		return;
	}
	now.modes = ADJ_TICK;
	if (syscall(SYS_adjtimex, &now) < 0)
		refused("adjtimex(ADJ_TICK)");
	else
		reached("adjtimex(ADJ_TICK)");
}

ATTACK(host_name)
{
	const char *name = text(args, "name", "reached");

	if (sethostname(name, strlen(name)))
		refused("sethostname");
	else
		reached("sethostname");
}

/* Without the magic numbers: EPERM comes before EINVAL. */
ATTACK(reboot)
{
	if (syscall(SYS_reboot, 0, 0, 0, NULL) && errno == EINVAL)
		reached("reboot: its numbers were looked at");
	else
		refused("reboot");
}

/* With flags that there are not: EPERM comes before EINVAL. */
ATTACK(kexec)
{
	if (syscall(SYS_kexec_load, 0, 1000, NULL, 0xffffL) && errno == EINVAL)
		reached("kexec_load: its flags were looked at");
	else
		refused("kexec_load");
}

ATTACK(swap)
{
	if (swapon("/proc/self/no-such-file", 0) && errno == ENOENT)
		reached("swapon: the path was looked for");
	else
		refused("swapon");
}

ATTACK(accounting)
{
	if (acct("/proc/self/no-such-file") && errno == ENOENT)
		reached("acct: the path was looked for");
	else
		refused("acct");
}

#if defined(__x86_64__)
ATTACK(io_ports)
{
	if (!iopl(3)) {
		reached("iopl");
		return;
	}
	refused("iopl");
	if (!ioperm(0x80, 1, 1))
		reached("ioperm");
}
#endif
