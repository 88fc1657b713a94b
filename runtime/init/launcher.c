/*
 * The front of both commands, `pycontain` and `pycontain-runtime`: finds the interpreter and the package that
 * belong to this file and becomes `python -I -S -c ... ARGS`.
 *
 * Why C: the OCI command is started for every verb on every container. A console script made by an installer
 * costs 10 ms more than the bare interpreter (site, re, .pth files); this costs 0.2 ms. Nothing is taken from the
 * environment, the working directory or argv[0]: the only input is where this file really is.
 *
 *   <prefix>/bin/<this file>
 *   <prefix>/lib/python3.N/{site,dist}-packages/pycontain/
 *   <prefix>/bin/python3.N, else /usr/local/bin, else /usr/bin
 *
 * An editable install keeps no copy of the package: PYCONTAIN_SOURCE, fixed at compile time, is the source tree,
 * and the packages directory is then only where the dependencies are.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef PYCONTAIN_SOURCE
#define PYCONTAIN_SOURCE ""
#endif
#ifdef EMBEDDED
#include "embedded.h"
#endif

/*
 * argv of the code: [-c, name, home, packages, the user's arguments...]. Both directories stand behind the standard
 * library, so that nothing in site-packages can take the place of a standard module; only for the first import `home`
 * stands ahead, so that no other directory is read.
 */
#define HEAD                                                                                                           \
	"import sys, gc, marshal\n"                                                                                    \
	"a, p = sys.argv, sys.path\n"                                                                                  \
	"home, packages = a[2:4]\n"                                                                                    \
	"a[:4] = [a[1]]\n"                                                                                             \
	"p += [x for x in (home, packages) if x not in p]\n"

/* The cache is runtime/start.py's, and holds its code too; 4 is the number of its format: an older one may lie there. */
#define TAIL                                                                                                           \
	"cache += sys.implementation.cache_tag\n"                                                                      \
	"try:\n"                                                                                                       \
	" with open(cache, 'rb') as f:\n"                                                                              \
	"  f.seek(-8, 2)\n"                                                                                            \
	"  n = int.from_bytes(f.read(), 'little')\n"                                                                   \
	"  f.seek(-n - 8, 2)\n"                                                                                        \
	"  code, table = marshal.loads(f.read(n))\n"                                                                   \
	" exec(code)\n"                                                                                                \
	"except (OSError, ValueError, EOFError, TypeError):\n"                                                         \
	" table = None\n"                                                                                              \
	" p.insert(0, home)\n"                                                                                         \
	" import pycontain\n"                                                                                          \
	" del p[0]\n"                                                                                                  \
	" from pycontain.runtime.start import main\n"                                                                  \
	"main(cache, table)\n"

/*
 * A verb ends before the collector could find anything, and its rounds over what imports have made cost 0.4 ms of
 * a start of the OCI command, and 10 ms of the user's. What goes on for long (logs -f) is still collected.
 */
static const char RUNTIME[] = HEAD "gc.disable()\n"
				   "cache = home + '/pycontain/runtime/__pycache__/start.4.'\n" TAIL;
static const char ENGINE[] = HEAD "gc.set_threshold(50000, 20, 20)\n"
				  "cache = home + '/pycontain/__pycache__/start.4.'\n" TAIL;

static const char *name = "pycontain";

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
	va_list list;

	fprintf(stderr, "%s: ", name);
	va_start(list, format);
	vfprintf(stderr, format, list);
	va_end(list);
	fputc('\n', stderr);
	exit(127);
}

static int __attribute__((format(printf, 2, 3))) path(char *out, const char *format, ...)
{
	va_list list;
	int n;

	va_start(list, format);
	n = vsnprintf(out, PATH_MAX, format, list);
	va_end(list);
	if (n >= PATH_MAX)
		die("a path below its own directory is longer than %d bytes", PATH_MAX);
	return n;
}

/* The newest python3.N below <prefix>/lib whose packages directory holds `what`; returns N, or -1. */
static int find_packages(const char *prefix, const char *what, char *out)
{
	static const char *const kinds[] = {"site-packages", "dist-packages"};
	char lib[PATH_MAX], trial[PATH_MAX];
	struct dirent *entry;
	int best = -1;
	DIR *dir;

	path(lib, "%s/lib", prefix);
	dir = opendir(lib);
	if (!dir)
		return -1;
	while ((entry = readdir(dir))) {
		char *end;
		long minor;

		if (strncmp(entry->d_name, "python3.", 8))
			continue;
		minor = strtol(entry->d_name + 8, &end, 10);
		if (*end || end == entry->d_name + 8 || minor <= best || minor > 999)
			continue;
		for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
			path(trial, "%s/%s/%s%s", lib, entry->d_name, kinds[i], what);
			if (access(trial, F_OK))
				continue;
			path(out, "%s/%s/%s", lib, entry->d_name, kinds[i]);
			best = (int)minor;
			break;
		}
	}
	closedir(dir);
	return best;
}

static void find_interpreter(const char *prefix, int minor, char *out)
{
	const char *const places[] = {prefix, "/usr/local", "/usr"};

	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
		path(out, "%s/bin/python3.%d", places[i], minor);
		if (!access(out, X_OK))
			return;
	}
	die("python3.%d is neither in %s/bin nor in /usr/local/bin nor in /usr/bin", minor, prefix);
}

/*
 * A virtual environment that is closed to the system has every dependency in its own packages directory, and
 * `site` (several ms) has nothing to add. Elsewhere (a system or --user install) it may.
 */
static int is_closed_environment(const char *prefix)
{
	static const char key[] = "include-system-site-packages = false";
	char file[PATH_MAX], text[4096];
	ssize_t n;
	int fd;

	path(file, "%s/pyvenv.cfg", prefix);
	fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	return strstr(text, key) != NULL;
}

static char python[PATH_MAX];
static char **args;

static void __attribute__((noreturn)) become_python(void)
{
	execv(python, args);
	die("execute %s: %s", python, strerror(errno));
}

int main(int argc, char **argv)
{
	char self[PATH_MAX], home[PATH_MAX], packages[PATH_MAX];
	const char *prefix = self;
	ssize_t n;
	int minor, runtime, i = 0;

	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (n < 0)
		die("readlink /proc/self/exe: %s", strerror(errno));
	self[n] = 0;
	for (int up = 0; up < 2; up++) {
		char *slash = strrchr(self, '/');

		if (!slash)
			die("%s is not in a bin directory", self);
		if (!up)
			name = strdup(slash + 1);
		*slash = 0;
	}
	runtime = !strcmp(name, "pycontain-runtime");

	if (*PYCONTAIN_SOURCE) {
		path(home, "%s", PYCONTAIN_SOURCE);
		minor = find_packages(prefix, "", packages);
	} else {
		minor = find_packages(prefix, "/pycontain/__init__.py", packages);
		path(home, "%s", packages);
	}
	if (minor < 0)
		die("no python3 packages directory with pycontain below %s/lib", prefix);
	find_interpreter(prefix, minor, python);

	args = calloc((size_t)argc + 12, sizeof(*args));
	if (!args)
		die("out of memory");
	args[i++] = python;
	args[i++] = (char *)"-I";
	if (runtime || is_closed_environment(prefix))
		args[i++] = (char *)"-S";
	/* Names of files are bytes to the kernel and UTF-8 to us, whatever the locale says. */
	args[i++] = (char *)"-X";
	args[i++] = (char *)"utf8";
	args[i++] = (char *)"-c";
	args[i++] = (char *)(runtime ? RUNTIME : ENGINE);
	args[i++] = (char *)name;
	args[i++] = home;
	args[i++] = packages;
	for (int from = 1; from < argc; from++)
		args[i++] = argv[from];
#ifdef EMBEDDED
	argv[0] = (char *)name;
	if (runtime && minor == embedded_minor)
		embedded(argc, argv, home, packages, python, become_python);
#endif
	become_python();
}
