/*
 * libFuzzer on the decoder of plans (runtime/init/plan.h), built with ASan and UBSan: whatever bytes come, it reads
 * inside them; and what plan_valid accepts, init's own reading of the arguments finds complete.
 *
 * The mutator repairs the header after each mutation: a wrong magic or total is found by the first comparison, and
 * what is behind it would hardly be seen.
 */
#include <stdlib.h>

#include "../../runtime/init/plan.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static void require(bool condition)
{
	if (!condition)
		abort();
}

/* Sums every byte of the arguments, so that the sanitizer sees each of them read. */
static unsigned long read_arguments(uint32_t code, struct cursor *args)
{
	unsigned long sum = 0;
	const char *s;
	uint32_t n;
	uint64_t u;

	for (const char *sig = signature(code); *sig; sig++) {
		switch (*sig) {
		case 'u':
			require(take(args, &u, 8));
			sum += u;
			break;
		case 's':
			require(take_string(args, &s));
			sum += strlen(s);
			break;
		case 'b':
			require(take_bytes(args, &s, &n));
			while (n--)
				sum += (unsigned char)*s++;
			break;
		case 'l':
			require(take(args, &n, 4));
			while (n--) {
				require(take_string(args, &s));
				sum += strlen(s);
			}
			break;
		}
	}
	require(args->at == args->end);
	return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cursor ops, args;
	uint32_t count, code;
	unsigned long sum = 0;
	char *plan = malloc(size ? size : 1); /* exactly as long: one byte more is an error of the sanitizer */

	if (!plan)
		abort();
	memcpy(plan, data, size);
	if (plan_valid(plan, size, &ops, &count))
		for (uint32_t i = 0; i < count; i++) {
			require(next_op(&ops, &code, &args));
			sum += read_arguments(code, &args);
		}
	__asm__ volatile("" : : "r"(sum)); /* the reads above are wanted */
	free(plan);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	uint32_t version = PLAN_VERSION, total;

	size = LLVMFuzzerMutate(data, size, max_size);
	if (size >= 16 && seed % 16) {
		total = (uint32_t)size;
		memcpy(data, PLAN_MAGIC, 4);
		memcpy(data + 4, &version, 4);
		memcpy(data + 12, &total, 4);
	}
	return size;
}
