/* From the world into a level: all that has to be arranged is arranged before the clock starts, so that a start is
 * one byte on a pipe and one execve. Not a probe: the front of every command that a level runs. */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static int failed(const char *what)
{
	int error = errno;

	fprintf(stderr, "enter: %s: %s\n", what, strerror(error));
	exit(error == ENOENT ? 127 : 126);
}

/* The cgroups: of version 1 a descriptor of each hierarchy's tasks, of version 2 of the directory. A write to tasks
 * does not wait for an RCU grace period, as one to cgroup.procs does. */
static void join(const char *tasks, const char *directory)
{
	char *next;
	long fd;

	for (; tasks && *tasks; tasks = *next ? next + 1 : next) {
		fd = strtol(tasks, &next, 10);
		if (write((int)fd, "0", 1) < 0)
			failed("join the cgroup");
		close((int)fd);
	}
	if (!directory)
		return;
	fd = openat(atoi(directory), "cgroup.procs", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write((int)fd, "0", 1) < 0)
		failed("join the cgroup");
	close((int)fd);
	close(atoi(directory));
}

PROBE(enter, "[tasks=FD,..] [cgroup=FD] [mounts=FD] [root=DIR] [user=ID] [leave=DIR] [program=PATH] ready=FD go=FD -- ARG...: "
	     "joins, writes a byte, waits for one, executes")
{
	char **argv = args, byte = 0;
	const char *program, *root, *mounts, *leave;
	int ready, go;
	long user;

	while (*argv && strcmp(*argv, "--"))
		argv++;
	if (!*argv || !argv[1])
		return EINVAL;
	*argv++ = NULL;
	ready = (int)number(args, "ready", -1);
	go = (int)number(args, "go", -1);
	program = text(args, "program", argv[0]);
	root = text(args, "root", NULL);
	mounts = text(args, "mounts", NULL);
	user = number(args, "user", 0);
	leave = text(args, "leave", NULL);

	join(text(args, "tasks", NULL), text(args, "cgroup", NULL));
	if (mounts && setns(atoi(mounts), CLONE_NEWNS))
		failed("enter the mount namespace");
	if (root && (chroot(root) || chdir("/")))
		failed("change the root directory");
	if (user && (setgroups(0, NULL) || setresgid((gid_t)user, (gid_t)user, (gid_t)user) ||
		     setresuid((uid_t)user, (uid_t)user, (uid_t)user) || chdir("/")))
		failed("become another user");
	if (user) /* a change of ids has made this process's files root's */
		prctl(PR_SET_DUMPABLE, 1);
	fcntl(ready, F_SETFD, FD_CLOEXEC);
	fcntl(go, F_SETFD, FD_CLOEXEC);
	if (mounts)
		fcntl(atoi(mounts), F_SETFD, FD_CLOEXEC);
	if (write(ready, "r", 1) != 1)
		failed("say that it is ready");
	if (read(go, &byte, 1) != 1)
		exit(125); /* who would have let it go is gone */
	if (leave && dup2(open(leave, O_RDONLY | O_DIRECTORY), 3) < 0)
		failed("leave a descriptor open");
	execv(program, argv);
	failed(program);
	return 0;
}
