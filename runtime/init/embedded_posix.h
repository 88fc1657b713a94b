/*
 * `posix` as far as the straight way of a verb uses it; included by embedded.c, for the Python whose functions these are.
 *
 * The whole module takes a million instructions, a tenth of `start`: 320 functions, as many constants, the tables of
 * sysconf(3) and its like, eight types. Here are some of the very functions, none of which asks for the module's state.
 * runtime/start.py adds all others as soon as one is asked for.
 */
#pragma once

extern PyObject *PyInit_posix(void);

static const char *const posix_functions[] = {
	"_exit", "access", "close", "cpu_count", "geteuid", "kill", "listdir", "major", "memfd_create", "minor",
	"mkdir", "open", "pidfd_open", "posix_spawn", "pread", "read", "readlink", "rename", "rmdir", "sched_getaffinity",
	"sched_setaffinity", "sendfile", "strerror", "unlink", "waitpid", "waitstatus_to_exitcode", "write", NULL,
};

static const struct {
	const char *name;
	long value;
} posix_numbers[] = {
	{ "MFD_ALLOW_SEALING", MFD_ALLOW_SEALING }, { "MFD_CLOEXEC", MFD_CLOEXEC }, { "O_CLOEXEC", O_CLOEXEC },
	{ "O_CREAT", O_CREAT }, { "O_DIRECTORY", O_DIRECTORY }, { "O_NOFOLLOW", O_NOFOLLOW }, { "O_NONBLOCK", O_NONBLOCK },
	{ "O_PATH", O_PATH }, { "O_RDONLY", O_RDONLY }, { "O_TRUNC", O_TRUNC }, { "O_WRONLY", O_WRONLY },
	{ "POSIX_SPAWN_DUP2", 2 }, { "R_OK", R_OK },
};

/* As posixmodule.c makes it: of two variables with one name the first counts. */
static PyObject *posix_environ(void)
{
	PyObject *all = PyDict_New();

	for (char **next = environ; all && next && *next; next++) {
		const char *equals = strchr(*next, '=');
		PyObject *name, *value;

		if (!equals)
			continue;
		name = PyBytes_FromStringAndSize(*next, equals - *next);
		value = PyBytes_FromString(equals + 1);
		if (!name || !value || !PyDict_SetDefault(all, name, value))
			Py_CLEAR(all);
		Py_XDECREF(name);
		Py_XDECREF(value);
	}
	return all;
}

static int make_posix(void)
{
	PyModuleDef *whole = (PyModuleDef *)PyInit_posix();
	PyObject *module = PyImport_AddModule("posix"), *name = module ? PyModule_GetNameObject(module) : NULL;

	if (!whole || !name)
		return -1;
	for (const char *const *wanted = posix_functions; *wanted; wanted++) {
		PyMethodDef *method = whole->m_methods;
		PyObject *function;

		while (method->ml_name && (*method->ml_name != **wanted || strcmp(method->ml_name, *wanted)))
			method++;
		if (!method->ml_name)
			continue;
		function = PyCFunction_NewEx(method, module, name);
		if (!function || PyModule_AddObject(module, *wanted, function) < 0)
			return -1;
	}
	for (size_t i = 0; i < sizeof posix_numbers / sizeof *posix_numbers; i++)
		if (PyModule_AddIntConstant(module, posix_numbers[i].name, posix_numbers[i].value) < 0)
			return -1;
	return PyModule_AddObject(module, "environ", posix_environ());
}
