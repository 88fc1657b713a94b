/* What every probe has: a name, arguments of the form KEY=VALUE, one line of JSON as its answer.
 *
 *     PROBE(getpid, "the time of getpid(2)")
 *     {
 *             long count = number(args, "count", 1000);
 *             ...
 *             json_numbers("ns", values, count);
 *             return 0;
 *     }
 *
 * No probe knows where it runs. It is one static program, so that nothing of the host has to be in the root file system.
 */
#ifndef PROBE_H
#define PROBE_H

#include <stddef.h>
#include <stdint.h>

struct probe {
	const char *name;
	const char *about;
	int (*run)(char **args); /* 0, or an errno: the probe itself could not do its work */
};

#define PROBE(name_, about_)                                                                     \
	static int probe_##name_(char **args);                                                   \
	__attribute__((used, section("probes"), aligned(8)))                                     \
	static const struct probe registered_##name_ = { #name_, about_, probe_##name_ };        \
	static int probe_##name_(__attribute__((unused)) char **args)

/* The value of KEY, or what else. */
const char *text(char **args, const char *key, const char *otherwise);
long number(char **args, const char *key, long otherwise);

/* Members of the answer; the braces around them are written by main. */
void json_text(const char *key, const char *value);
void json_number(const char *key, double value);
void json_numbers(const char *key, const double *values, size_t count);

/* The answer so far as a line, and a new one: for probes that go on (a victim, a server). */
void json_line(void);

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t now_ns(void);

#endif
