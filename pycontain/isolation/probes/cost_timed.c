/* The stop-watch of the probes of costs. */
#define _GNU_SOURCE
#include "probe.h"
#include "cost.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BATCHES = 64 };

struct pace pace_of(char **args)
{
	struct pace pace = { (double)number(args, "ms", 10) * 1e6, number(args, "batches", 5), 0 };

	if (pace.batches < 1)
		pace.batches = 1;
	if (pace.batches > BATCHES)
		pace.batches = BATCHES;
	return pace;
}

void not_timed(const char *key, int error)
{
	char name[80];

	snprintf(name, sizeof(name), "failed.%s", key);
	json_text(name, strerror(error));
}

void timed(const char *key, work *does, void *of, struct pace pace)
{
	double values[BATCHES], spent;
	long count = 1;
	uint64_t start;
	int error;

	for (;;) {
		start = now_ns();
		error = does(of, count);
		spent = (double)(now_ns() - start);
		if (error)
			return not_timed(key, error);
		if (spent * 4 >= pace.ns || (pace.most && count >= pace.most))
			break;
		count *= 2;
	}
	if (spent > 0)
		count = (long)((double)count * pace.ns / spent);
	if (pace.most && count > pace.most)
		count = pace.most;
	if (count < 1)
		count = 1;
	for (long i = 0; i < pace.batches; i++) {
		start = now_ns();
		error = does(of, count);
		values[i] = (double)(now_ns() - start) / (double)count;
		if (error)
			return not_timed(key, error);
	}
	json_numbers(key, values, (size_t)pace.batches);
}

const char *own_path(void)
{
	unsigned long name = getauxval(AT_EXECFN);

	return name ? (const char *)name : "/proc/self/exe";
}

int pair_up(struct pair *pair, void does(void *of), void *of)
{
	unsigned long one[16] = { 0 };
	unsigned cpu;
	int error = 0;

	/* by number: the C library's wrapper answers 0 where the kernel tells how many bytes it filled in */
	pair->size = syscall(SYS_sched_getaffinity, 0, sizeof(pair->before), pair->before);
	if (pair->size < 0 || syscall(SYS_getcpu, &cpu, NULL, NULL))
		return errno;
	one[cpu / (8 * sizeof(one[0]))] = 1ul << cpu % (8 * sizeof(one[0]));
	if (syscall(SYS_sched_setaffinity, 0, sizeof(one), one))
		return errno;
	pair->child = fork();
	if (!pair->child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		does(of);
		_exit(0);
	}
	if (pair->child < 0) {
		error = errno;
		syscall(SYS_sched_setaffinity, 0, pair->size, pair->before);
	}
	return error;
}

void unpair(struct pair *pair)
{
	kill(pair->child, SIGKILL);
	waitpid(pair->child, NULL, 0);
	syscall(SYS_sched_setaffinity, 0, pair->size, pair->before);
}

uint64_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return *state >> 33;
}
