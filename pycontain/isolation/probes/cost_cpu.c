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

enum { SORTED = 1024 };

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

PROBE(cost_cpu, "nanoseconds a thousand steps of arithmetic, and a sort of 1024 numbers; ms= a batch, batches=")
{
	struct pace pace = pace_of(args);
	static uint32_t numbers[SORTED];
	double x = 1;

	timed("integer", do_integer, NULL, pace);
	timed("float", do_float, &x, pace);
	timed("sort", do_sort, numbers, pace);
	return 0;
}

enum { LINE = 64, CHUNK = 1 << 20 };

/* Chunk after chunk, round and round: when one comes again, the whole buffer went through the caches in between. */
struct memory {
	size_t size, place; /* of each of two buffers, one right behind the other */
	char *one, *other;
	uint32_t line;
};

static size_t next_chunk(struct memory *memory)
{
	memory->place = (memory->place + CHUNK) % memory->size;
	return memory->place;
}

static int do_memory_read(void *of, long count)
{
	struct memory *memory = of;

	for (; count > 0; count--) {
		const uint64_t *word = (uint64_t *)(memory->one + next_chunk(memory)), *end = word + CHUNK / sizeof(*word);
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
		char *at = memory->one + next_chunk(memory);
		memset(at, (int)count & 255, CHUNK);
		kept += (unsigned char)at[CHUNK - 1];
	}
	return 0;
}

static int do_memory_copy(void *of, long count)
{
	struct memory *memory = of;

	for (; count > 0; count--) {
		size_t place = next_chunk(memory);
		memcpy(memory->other + place, memory->one + place, CHUNK);
		kept += (unsigned char)memory->other[place + CHUNK - 1];
	}
	return 0;
}

/* The next line is known when this one's word (it is 0) is there. A congruential generator whose period is all lines
 * (their number is a power of two, the increment odd, the factor 1 modulo 4) comes by each of them once. */
static int do_chase(void *of, long count)
{
	struct memory *memory = of;
	uint32_t line = memory->line, mask = (uint32_t)(2 * memory->size / LINE) - 1;

	for (; count > 0; count--)
		line = (line * 1664525u + 1013904223u + *(volatile uint32_t *)(memory->one + (size_t)line * LINE)) & mask;
	memory->line = line;
	return 0;
}

PROBE(cost_memory, "nanoseconds a MiB of reading, writing, copying, and a step of a random walk, in two buffers of mib=; ms=, batches=")
{
	struct pace pace = pace_of(args);
	struct memory memory = { .size = (size_t)number(args, "mib", 64) << 20 };
	char *room = mmap(NULL, 2 * memory.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (room == MAP_FAILED)
		return errno;
	if (memory.size < CHUNK || memory.size & (memory.size - 1))
		return EINVAL;
	memory.one = room;
	memory.other = room + memory.size;
	memset(room, 1, 2 * memory.size); /* every page is there before the clock runs */
	json_number("bytes", (double)memory.size);
	timed("read", do_memory_read, &memory, pace);
	timed("write", do_memory_write, &memory, pace);
	timed("copy", do_memory_copy, &memory, pace);
	memset(room, 0, 2 * memory.size);
	timed("chase", do_chase, &memory, pace);
	return 0;
}
