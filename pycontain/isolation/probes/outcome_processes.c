/* Attacks on the host's processes. */
#define _GNU_SOURCE
#include "outcome.h"
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void by_file(const char *proc, int pid, const char *name)
{
	char path[64], how[64];

	snprintf(path, sizeof(path), "%s/%d/%s", proc, pid, name);
	snprintf(how, sizeof(how), "/proc/PID/%s", name);
	read_decoy(open(path, O_RDONLY | O_CLOEXEC), how);
}

static void command_line(const char *proc, int pid, char **args)
{
	(void)args;
	by_file(proc, pid, "cmdline");
}

ATTACK(process_seen)
{
	const char *proc = procfs();

	if (proc)
		each_process(proc, command_line, args);
}

static void environment(const char *proc, int pid, char **args)
{
	(void)args;
	by_file(proc, pid, "environ");
}

ATTACK(process_environment)
{
	const char *proc = procfs();

	if (proc)
		each_process(proc, environment, args);
}

ATTACK(process_memory)
{
	pid_t pid = (pid_t)number(args, "pid", 0);
	unsigned long at = strtoul(text(args, "address", "0"), NULL, 0);
	const char *proc;
	char bytes[128], path[64];
	struct iovec here = { bytes, sizeof(bytes) }, there = { (void *)at, sizeof(bytes) };
	ssize_t size = process_vm_readv(pid, &here, 1, &there, 1, 0);
	int fd;

	if (size < 0)
		refused("process_vm_readv");
	else if (saw(bytes, (size_t)size, "process_vm_readv"))
		return;
	proc = procfs();
	snprintf(path, sizeof(path), "%s/%d/mem", proc ? proc : "/proc", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	size = fd < 0 ? -1 : pread(fd, bytes, sizeof(bytes), (off_t)at);
	if (size > 0)
		saw(bytes, (size_t)size, "/proc/PID/mem");
	else
		refused("/proc/PID/mem");
}

ATTACK(process_trace)
{
	pid_t pid = (pid_t)number(args, "pid", 0);
	unsigned long at = strtoul(text(args, "address", "0"), NULL, 0);
	long words[16];
	int status;

	if (ptrace(PTRACE_ATTACH, pid, NULL, NULL)) {
		refused("ptrace(PTRACE_ATTACH)");
		return;
	}
	waitpid(pid, &status, __WALL);
	for (size_t i = 0; i < 16; i++)
		words[i] = ptrace(PTRACE_PEEKDATA, pid, (void *)(at + i * sizeof(long)), NULL);
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	saw(words, sizeof(words), "ptrace(PTRACE_ATTACH) and PTRACE_PEEKDATA");
}

/* SIGURG does nothing to whoever does not wait for it: no harm where the number is another process's. */
ATTACK(process_signal)
{
	union sigval cookie = { .sival_int = (int)number(args, "cookie", 0) };
	pid_t pid = (pid_t)number(args, "pid", 0);

	if (kill(pid, 0) || sigqueue(pid, SIGURG, cookie))
		refused("kill");
	else
		reached("a signal to its process number");
}

ATTACK(process_descriptor)
{
	pid_t pid = (pid_t)number(args, "pid", 0);
	int process = (int)syscall(SYS_pidfd_open, pid, 0), fd;
	char bytes[128];
	ssize_t size;

	if (process < 0) {
		refused("pidfd_open");
		return;
	}
	fd = (int)syscall(SYS_pidfd_getfd, process, (int)number(args, "descriptor", 0), 0);
	if (fd < 0) {
		refused("pidfd_getfd");
		return;
	}
	size = pread(fd, bytes, sizeof(bytes), 0);
	if (size > 0)
		saw(bytes, (size_t)size, "pidfd_getfd");
}
