/* How every figure of a cost is taken: an operation is repeated until the clock has moved enough, several times over. */
#ifndef COST_H
#define COST_H

#include <sys/types.h>

/* Does an operation `count` times. 0, or an errno. */
typedef int work(void *of, long count);

struct pace {
	double ns;    /* about how long a batch lasts (ms=) */
	long batches; /* (batches=) */
	long most;    /* operations in a batch at most, 0: no bound */
};

struct pace pace_of(char **args);

/* Times `does`: the answer has nanoseconds an operation under `key`, a number a batch. The number of operations in a
 * batch is found by doubling, which warms what is measured too. An operation that fails is told under `failed.KEY`. */
void timed(const char *key, work *does, void *of, struct pace pace);
void not_timed(const char *key, int error);

/* The path by which this program was started: a file that is there at every level, and in the page cache. */
const char *own_path(void);

/* Two processes on one processor: so that a wake-up of the other is a context switch. The child runs `does(of)`, and
 * is killed by `unpair`. 0, or an errno. */
struct pair {
	pid_t child;
	unsigned long before[16]; /* the affinity that the parent had: 1024 processors */
	long size;
};

int pair_up(struct pair *pair, void does(void *of), void *of);
void unpair(struct pair *pair);

/* The same sequence at every level. */
uint64_t next_random(uint64_t *state);

#endif
