/* A fixed piece of work that calls a kernel in the usual ways. What it leads to outside is counted there. */
#define _GNU_SOURCE
#include "probe.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIZE 16384

static char bytes[SIZE];

static int files(const char *directory)
{
	char path[4096], other[4096 + 8];
	struct stat found;
	DIR *stream;
	void *mapped;
	int file, error = 0;

	snprintf(path, sizeof(path), "%s/surface-workload", directory);
	snprintf(other, sizeof(other), "%s.other", path);
	file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (file < 0)
		return errno;
	if (write(file, bytes, SIZE) != SIZE || lseek(file, 0, SEEK_SET) || read(file, bytes, SIZE) != SIZE ||
	    fstat(file, &found) || stat(path, &found) || chmod(path, 0640))
		error = errno;
	mapped = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, file, 0);
	if (mapped == MAP_FAILED || memcmp(mapped, bytes, SIZE) || munmap(mapped, SIZE))
		error = errno;
	if (ftruncate(file, SIZE / 2) || close(file) || rename(path, other) || !access(path, F_OK) || unlink(other) ||
	    mkdir(path, 0700) || rmdir(path))
		error = errno;
	stream = opendir("/");
	while (stream && readdir(stream))
		;
	return stream && !closedir(stream) ? error : errno;
}

static int memory(void)
{
	size_t size = 1 << 20;
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		return errno;
	memset(area, 1, size);
	return mprotect(area, size, PROT_READ) || munmap(area, size) ? errno : 0;
}

/* A process of the same program, and what it says through a pipe. */
static int processes(void)
{
	int pipes[2], status;
	pid_t child;
	char said[128];

	if (pipe2(pipes, O_CLOEXEC))
		return errno;
	child = fork();
	if (!child) {
		dup2(pipes[1], 1);
		execl("/proc/self/exe", "probe", "first", (char *)NULL);
		_exit(127);
	}
	close(pipes[1]);
	while (read(pipes[0], said, sizeof(said)) > 0)
		;
	close(pipes[0]);
	if (child < 0 || waitpid(child, &status, 0) != child)
		return errno;
	return status ? ECHILD : 0;
}

static int network(void)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(here);
	int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int peer = -1, error = 0;

	if (server < 0 || client < 0 || bind(server, (struct sockaddr *)&here, size) || listen(server, 1) ||
	    getsockname(server, (struct sockaddr *)&here, &size) || connect(client, (struct sockaddr *)&here, size))
		error = errno;
	if (!error) {
		peer = accept(server, NULL, NULL);
		if (peer < 0 || send(client, bytes, 4096, 0) != 4096 || recv(peer, bytes, 4096, MSG_WAITALL) != 4096 ||
		    poll(&(struct pollfd){ .fd = client, .events = POLLOUT }, 1, 1000) != 1 || shutdown(client, SHUT_RDWR))
			error = errno;
	}
	close(peer);
	close(client);
	close(server);
	return error;
}

static void on_signal(int signal)
{
	(void)signal;
}

static void *thread(void *nothing)
{
	return nothing;
}

static int the_rest(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	struct utsname system;
	pthread_t other;

	if (sigaction(SIGUSR1, &action, NULL) || kill(getpid(), SIGUSR1) || uname(&system) ||
	    getrandom(bytes, 64, 0) != 64 || nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL))
		return errno;
	if (pthread_create(&other, NULL, thread, NULL) || pthread_join(other, NULL))
		return EAGAIN;
	return 0;
}

static void rest_ms(long ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

PROBE(surface_workload, "files in directory=, memory, a process, loopback, signals, passes= times; says begin and end")
{
	const char *directory = text(args, "directory", ".");
	long passes = number(args, "passes", 10), quiet = number(args, "quiet", 100);
	int error = 0;

	for (long pass = 0; pass < passes + 1 && !error; pass++) {
		if (pass == 1) { /* the first has filled the caches */
			json_text("said", "begin");
			json_line();
			rest_ms(quiet);
		}
		error = files(directory);
		error = error ? error : memory();
		error = error ? error : processes();
		error = error ? error : network();
		error = error ? error : the_rest();
	}
	if (error)
		return error;
	json_text("said", "end");
	json_line();
	pause(); /* until it is killed: what it leads to is read in peace */
	return 0;
}
