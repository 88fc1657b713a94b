/* The frame of the probes: /probe NAME [KEY=VALUE ...]; without a name, the list of them. */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern const struct probe __start_probes[], __stop_probes[];

static const char *who;
static char *answer;
static size_t used, room;

static void add(const char *bytes, size_t size)
{
	if (used + size > room) {
		room = (used + size) * 2 + 256;
		answer = realloc(answer, room);
		if (!answer)
			_exit(ENOMEM);
	}
	memcpy(answer + used, bytes, size);
	used += size;
}

static void add_string(const char *value)
{
	char escaped[8];

	add("\"", 1);
	for (const unsigned char *c = (const unsigned char *)value; *c; c++) {
		if (*c == '"' || *c == '\\' || *c < 32 || *c > 126) /* bytes, as Latin-1: always valid JSON */
			add(escaped, (size_t)sprintf(escaped, "\\u%04x", *c));
		else
			add((const char *)c, 1);
	}
	add("\"", 1);
}

static void add_key(const char *key)
{
	if (used)
		add(", ", 2);
	add_string(key);
	add(": ", 2);
}

static void add_number(double value)
{
	char digits[40];

	if (!isfinite(value))
		add("null", 4);
	else
		add(digits, (size_t)snprintf(digits, sizeof(digits), "%.15g", value));
}

void json_text(const char *key, const char *value)
{
	add_key(key);
	add_string(value);
}

void json_number(const char *key, double value)
{
	add_key(key);
	add_number(value);
}

void json_numbers(const char *key, const double *values, size_t count)
{
	add_key(key);
	add("[", 1);
	for (size_t i = 0; i < count; i++) {
		if (i)
			add(", ", 2);
		add_number(values[i]);
	}
	add("]", 1);
}

void json_line(void)
{
	size_t done = 0, size;
	char *line;

	if (asprintf(&line, "{\"probe\": \"%s\"%s%.*s}\n", who, used ? ", " : "", (int)used, used ? answer : "") < 0)
		_exit(ENOMEM);
	size = strlen(line);
	while (done < size) {
		ssize_t some = write(1, line + done, size - done);
		if (some < 0 && errno != EINTR)
			_exit(errno);
		done += some < 0 ? 0 : (size_t)some;
	}
	free(line);
	used = 0;
}

const char *text(char **args, const char *key, const char *otherwise)
{
	size_t size = strlen(key);

	for (; *args; args++)
		if (!strncmp(*args, key, size) && (*args)[size] == '=')
			return *args + size + 1;
	return otherwise;
}

long number(char **args, const char *key, long otherwise)
{
	const char *value = text(args, key, NULL);

	return value ? strtol(value, NULL, 0) : otherwise;
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int main(int argc, char **argv)
{
	int error;

	if (argc < 2) {
		for (const struct probe *probe = __start_probes; probe < __stop_probes; probe++)
			printf("%s: %s\n", probe->name, probe->about);
		return 0;
	}
	for (const struct probe *probe = __start_probes; probe < __stop_probes; probe++) {
		if (strcmp(probe->name, argv[1]))
			continue;
		who = probe->name;
		error = probe->run(argv + 2);
		if (error)
			json_text("error", strerror(error));
		if (used)
			json_line();
		return error ? 1 : 0;
	}
	fprintf(stderr, "no probe has the name %s\n", argv[1]);
	return 2;
}
