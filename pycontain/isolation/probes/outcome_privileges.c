/* Attacks on what keeps an unprivileged process of a container unprivileged: rights that come with a program's file. */
#define _GNU_SOURCE
#include "outcome.h"
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

PROBE(privileged, "fails unless it is user 0's, or has a capability")
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { { 0 } };

	if (!geteuid())
		return 0;
	return !syscall(SYS_capget, &header, data) && (data[0].permitted || data[1].permitted) ? 0 : EPERM;
}

/* Execute the program as a user who has no rights. */
static void executed(const char *program, const char *how)
{
	int status = 0;
	pid_t child = fork();

	if (!child) {
		char *const arguments[] = { (char *)program, "privileged", NULL };

		close(1); /* what it says is in its exit status */
		if (setgroups(0, NULL) || (setresgid(65534, 65534, 65534) && setresgid(1, 1, 1)) ||
		    (setresuid(65534, 65534, 65534) && setresuid(1, 1, 1)))
			_exit(100);
		execv(program, arguments);
		_exit(101);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return;
	errno = EPERM;
	if (!WEXITSTATUS(status))
		reached(how);
	else if (WEXITSTATUS(status) == 100)
		refused("a change to another user");
	else
		refused(how);
}

/* A copy of this program with rights of its own, wherever one can be made. */
static void with_copy(int (*give)(int fd), const char *how)
{
	char path[PATH_MAX], bytes[65536];
	ssize_t size;

	for (const char *const *place = places(); *place && !done(); place++) {
		int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), to;

		snprintf(path, sizeof(path), "%s/.raise-%d", *place, getpid());
		to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
		if (from < 0 || to < 0) {
			refused("a copy of the program");
		} else {
			while ((size = read(from, bytes, sizeof(bytes))) > 0)
				if (write(to, bytes, (size_t)size) != size)
					break;
			if (give(to))
				refused("rights for the program's file");
		}
		if (from >= 0)
			close(from);
		if (to >= 0) {
			close(to);
			executed(path, how);
			unlink(path);
		}
	}
}

static int user_bit(int fd)
{
	return fchmod(fd, 04755);
}

ATTACK(set_user_id)
{
	with_copy(user_bit, "a set-user-ID program, executed by another user");
}

/* What a file may hand on of the inheritable set, which is empty unless a runtime filled it (capabilities(7)). */
static int inheritable(int fd)
{
	struct vfs_cap_data data = { .magic_etc = VFS_CAP_REVISION_2 };

	data.data[0].inheritable = 0xffffffff;
	return fsetxattr(fd, "security.capability", &data, sizeof(data), 0);
}

ATTACK(inherited_capabilities)
{
	with_copy(inheritable, "a program with inheritable capabilities, executed by another user");
}
