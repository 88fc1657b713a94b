/* What is told about the machine, to be compared with the host's own. */
#define _GNU_SOURCE
#include "probe.h"
#include "surface.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/utsname.h>
#include <unistd.h>

char *surface_read(const char *path, size_t limit)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	char *text = calloc(1, limit + 1);
	size_t used = 0;
	ssize_t some = 0;

	while (file >= 0 && text && used < limit && (some = read(file, text + used, limit - used)) > 0)
		used += (size_t)some;
	if (file >= 0)
		close(file);
	if (file >= 0 && text && some >= 0)
		return text;
	free(text);
	return NULL;
}

static void say_file(const char *key, const char *path, size_t limit)
{
	char *text = surface_read(path, limit);

	if (text)
		json_text(key, text);
	free(text);
}

/* The lines of a file of /proc that begin with one of the words. */
static void say_lines(const char *key, const char *path, const char *const *words)
{
	char *text = surface_read(path, 1 << 20), *kept = text, *next;

	if (!text)
		return;
	for (char *line = text; *line; line = next) {
		char *end = strchr(line, '\n');
		const char *const *word = words;

		next = end ? end + 1 : line + strlen(line);
		while (*word && strncmp(line, *word, strlen(*word)))
			word++;
		if (*word) {
			memmove(kept, line, (size_t)(next - line));
			kept += next - line;
		}
	}
	*kept = 0;
	json_text(key, text);
	free(text);
}

#define SAY_LINES(key, path, ...) say_lines(key, path, (const char *const[]){ __VA_ARGS__, NULL })

PROBE(surface_information, "what is told about the machine")
{
	static char log[1 << 18];
	struct utsname system;
	int size = klogctl(3 /* SYSLOG_ACTION_READ_ALL */, log, sizeof(log) - 1);

	int first = open("/proc/1/ns/uts", O_RDONLY | O_CLOEXEC);

	if (first >= 0) {
		setns(first, CLONE_NEWUTS); /* where it is forbidden, the name is that of our own */
		close(first);
	}
	if (uname(&system))
		return errno;
	json_text("host_name", system.nodename);
	json_text("release", system.release);
	json_text("version", system.version);
	if (size >= 0) {
		log[size] = 0;
		json_text("log", log);
	}
	say_file("boot_id", "/proc/sys/kernel/random/boot_id", 64);
	say_file("command_line", "/proc/cmdline", 4096);
	say_file("uptime", "/proc/uptime", 64);
	say_file("load", "/proc/loadavg", 64);
	say_file("interrupts", "/proc/interrupts", 1 << 20);
	say_file("disks", "/proc/diskstats", 65536);
	say_file("mounts", "/proc/self/mountinfo", 65536);
	say_file("symbols", "/proc/kallsyms", 4096);
	say_file("timers", "/proc/timer_list", 4096);
	SAY_LINES("memory", "/proc/meminfo", "MemTotal:");
	SAY_LINES("statistics", "/proc/stat", "intr ", "ctxt ", "processes ", "btime ");
	SAY_LINES("processors", "/proc/cpuinfo", "processor", "model name", "CPU part", "bogomips", "BogoMIPS", "microcode");
	return 0;
}
