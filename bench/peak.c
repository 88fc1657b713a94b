/*
 * peak COMMAND ARGS...: runs it and prints the peak resident set of it and of all it waited for, in KiB.
 *
 * A process inherits the peak of the memory it had before execve. So a command that a large process (an interpreter)
 * starts never shows less than that process had; started from this small one, it shows its own.
 */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct rusage usage;
	int status;
	pid_t pid = argc > 1 ? fork() : -1;

	if (!pid) {
		execvp(argv[1], argv + 1);
		_exit(127);
	}
	if (pid < 0 || wait4(pid, &status, 0, &usage) != pid)
		return 127;
	fprintf(stderr, "%ld\n", usage.ru_maxrss);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 126;
}
