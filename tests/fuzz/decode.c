/*
 * What init reads in a plan: takes plans (u32 length, bytes) from its standard input and says a line to each, a word an
 * operation: CODE:ARGUMENT:ARGUMENT..., with numbers in decimal, strings and bytes in hex, lists as [hex,hex,.
 * "invalid" for what plan_valid refuses.
 */
#include <stdio.h>
#include <stdlib.h>

#include "../../runtime/init/plan.h"

static void print_hex(const char *s, uint32_t n)
{
	while (n--)
		printf("%02x", (unsigned char)*s++);
}

static void print_op(uint32_t code, struct cursor *args)
{
	const char *s = "";
	uint32_t n = 0;
	uint64_t u = 0;

	printf("%u", code);
	for (const char *sig = signature(code); *sig; sig++) {
		putchar(':');
		switch (*sig) {
		case 'u':
			take(args, &u, 8);
			printf("%llu", (unsigned long long)u);
			break;
		case 's':
			take_string(args, &s);
			print_hex(s, strlen(s));
			break;
		case 'b':
			take_bytes(args, &s, &n);
			print_hex(s, n);
			break;
		case 'l':
			take(args, &n, 4);
			putchar('[');
			for (; n; n--) {
				take_string(args, &s);
				print_hex(s, strlen(s));
				putchar(',');
			}
			break;
		}
	}
	putchar(' ');
}

int main(void)
{
	uint32_t size, count, code;

	while (fread(&size, 4, 1, stdin) == 1) {
		char *plan = malloc(size);
		struct cursor ops, args;

		if (!plan || fread(plan, 1, size, stdin) != size)
			return 1;
		if (plan_valid(plan, size, &ops, &count))
			for (uint32_t i = 0; i < count && next_op(&ops, &code, &args); i++)
				print_op(code, &args);
		else
			printf("invalid");
		putchar('\n');
		fflush(stdout);
		free(plan);
	}
	return 0;
}
