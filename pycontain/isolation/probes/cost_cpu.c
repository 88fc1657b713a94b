/* What computing costs: a processor's own work, and its memory's. No system call is made while the clock runs. */
#define _GNU_SOURCE
#include "probe.h"
#include "cost.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static volatile uint64_t kept; /* so that no loop is left out by the compiler */

/* Every step needs the last one's result: it is the latency of a multiplication, an addition and a shift. */
static int do_integer(void *of, long count)
{
	uint64_t x = kept | 1;

	(void)of;
	for (long left = count * 1000; left > 0; left--) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		x ^= x >> 29;
	}
	kept = x;
	return 0;
}

static int do_float(void *of, long count)
{
	double *at = of, x = *at;

	for (long left = count * 1000; left > 0; left--)
		x = x * 0.999999 + 1.0 / (x + 2.0);
	*at = x;
	return 0;
}

enum { SORTED = 4096 };

static int compare(const void *one, const void *other)
{
	uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;

	return (a > b) - (a < b);
}

static int do_sort(void *of, long count)
{
	uint32_t *numbers = of;

	for (; count > 0; count--) {
		uint64_t state = 1;
		for (long i = 0; i < SORTED; i++)
			numbers[i] = (uint32_t)next_random(&state);
		qsort(numbers, SORTED, sizeof(*numbers), compare);
		for (long i = 1; i < SORTED; i++)
			if (numbers[i - 1] > numbers[i])
				return EIO;
	}
	return 0;
}

PROBE(cost_cpu, "nanoseconds a thousand steps of arithmetic, and a sort of 4096 numbers; ms= a batch, batches=")
{
	struct pace pace = pace_of(args);
	static uint32_t numbers[SORTED];
	double x = 1;

	timed("integer", do_integer, NULL, pace);
	timed("float", do_float, &x, pace);
	timed("sort", do_sort, numbers, pace);
	return 0;
}

struct memory {
	size_t size;
	char *one, *other;
	uint32_t at; /* of the chase */
};

static int do_memory_read(void *of, long count)
{
	struct memory *memory = of;

	for (; count > 0; count--) {
		const uint64_t *word = (uint64_t *)memory->one, *end = (uint64_t *)(memory->one + memory->size);
		uint64_t a = 0, b = 0, c = 0, d = 0;

		for (; word < end; word += 8) {
			a += word[0] ^ word[4];
			b += word[1] ^ word[5];
			c += word[2] ^ word[6];
			d += word[3] ^ word[7];
		}
		kept += a + b + c + d;
	}
	return 0;
}

static int do_memory_write(void *of, long count)
{
	struct memory *memory = of;

	for (; count > 0; count--) {
		memset(memory->one, (int)count & 255, memory->size);
		kept += (unsigned char)memory->one[memory->size - 1];
	}
	return 0;
}

static int do_memory_copy(void *of, long count)
{
	struct memory *memory = of;

	for (; count > 0; count--) {
		memcpy(memory->other, memory->one, memory->size);
		kept += (unsigned char)memory->other[memory->size - 1];
	}
	return 0;
}

enum { LINE = 64 };

static int do_chase(void *of, long count)
{
	struct memory *memory = of;
	uint32_t at = memory->at;

	for (long left = count; left > 0; left--)
		at = *(uint32_t *)(memory->one + (size_t)at * LINE);
	memory->at = at;
	kept = at;
	return 0;
}

/* One cycle through all lines in random order (Sattolo's shuffle): no prefetcher knows where it goes. */
static void make_cycle(struct memory *memory)
{
	uint32_t lines = (uint32_t)(memory->size / LINE), swap;
	uint64_t state = 1;

	for (uint32_t i = 0; i < lines; i++)
		*(uint32_t *)(memory->one + (size_t)i * LINE) = i;
	for (uint32_t i = lines - 1; i > 0; i--) {
		uint32_t *mine = (uint32_t *)(memory->one + (size_t)i * LINE);
		uint32_t *its = (uint32_t *)(memory->one + (size_t)(next_random(&state) % i) * LINE);
		swap = *mine;
		*mine = *its;
		*its = swap;
	}
}

PROBE(cost_memory, "nanoseconds a pass over mib= of memory (read, write, copy), and a step of a random walk; ms=, batches=")
{
	struct pace pace = pace_of(args);
	struct memory memory = { .size = (size_t)number(args, "mib", 64) << 20 };
	char *room = mmap(NULL, 2 * memory.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (room == MAP_FAILED)
		return errno;
	memory.one = room;
	memory.other = room + memory.size;
	memset(room, 1, 2 * memory.size); /* every page is there before the clock runs */
	json_number("bytes", (double)memory.size);
	timed("read", do_memory_read, &memory, pace);
	timed("write", do_memory_write, &memory, pace);
	timed("copy", do_memory_copy, &memory, pace);
	make_cycle(&memory);
	timed("chase", do_chase, &memory, pace);
	return 0;
}
