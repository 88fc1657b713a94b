/*
 * The launcher's own interpreter, for `pycontain-runtime`: libpython linked in, and started only as far as the straight
 * way of a verb needs it.
 *
 * A `python -I -S` that does nothing takes 4.9 ms here, of which 2.2 are the import system's half that reads files, the
 * codecs and the standard streams. The modules of a verb come out of one file (runtime/start.py) and need none of these.
 * Whatever does need them gets them late: `complete` makes the rest of the interpreter, in the middle of things, and
 * `ordinary` gives up and becomes the python that the launcher would have become, as long as nothing was done yet.
 *
 * PEP 587 calls this multi-phase initialization, and provisional: where a Python has it no longer, or has no static
 * library, the Makefile makes the launcher without this file, and it does the same more slowly.
 */
#define PY_SSIZE_T_CLEAN
#ifdef LAZY_FROZEN
#define Py_BUILD_CORE
#endif
#include <Python.h>
#include <marshal.h>
#ifdef LAZY_FROZEN
#include <internal/pycore_runtime.h>
#endif

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "embedded.h"
#include "embedded_json.h"
#ifdef LAZY_FROZEN
#include "embedded_posix.h"
#endif
#include "embedded_sockets.h"

const int embedded_minor = PY_MINOR_VERSION;

extern int _PySignal_Init(int install_signal_handlers);

/*
 * Python 3.11 has its standard library's first modules as data, and interns every name in them as it starts. The core
 * runs one of them, importlib._bootstrap; the others, which are more than half of all data here, are left alone (and not
 * even read) until the interpreter is completed. setup.py has the linker let us in between (ld(1), --wrap).
 */
#ifdef LAZY_FROZEN
extern PyObject *_Py_get_importlib__bootstrap_toplevel(void);
extern int _PyStaticCode_InternStrings(PyCodeObject *code);
extern int __real__Py_Deepfreeze_Init(void);
int __wrap__Py_Deepfreeze_Init(void);

int __wrap__Py_Deepfreeze_Init(void)
{
	return _PyStaticCode_InternStrings((PyCodeObject *)_Py_get_importlib__bootstrap_toplevel());
}
#endif

static void (*become_ordinary)(void);

/* All of runtime/start.py's cache, as it is and stays whatever takes its place: 60 page faults fewer than reading it. */
static const char *cache;
static uint64_t cache_size;

static PyObject *piece(PyObject *self, PyObject *args)
{
	unsigned long long at, size;

	(void)self;
	if (!PyArg_ParseTuple(args, "KK", &at, &size))
		return NULL;
	if (at > cache_size || size > cache_size - at)
		return PyErr_Format(PyExc_EOFError, "found %llu bytes, wanted %llu at %llu", (unsigned long long)cache_size, size, at);
	return PyMarshal_ReadObjectFromString(cache + at, size);
}

static PyObject *ordinary(PyObject *self, PyObject *none)
{
	(void)self, (void)none;
	become_ordinary();
	return NULL;
}

static PyObject *complete(PyObject *self, PyObject *none)
{
	PyStatus status;

	(void)self, (void)none;
#ifdef LAZY_FROZEN
	if (__real__Py_Deepfreeze_Init() < 0)
		return NULL;
#endif
	status = _Py_InitializeMain();
	if (PyStatus_Exception(status))
		return PyErr_Format(PyExc_SystemError, "cannot complete the interpreter: %s", status.err_msg);
	Py_RETURN_NONE;
}

static PyObject *lock(PyObject *self, PyObject *args)
{
	int fd, how, result;

	(void)self;
	if (!PyArg_ParseTuple(args, "ii", &fd, &how))
		return NULL;
	do {
		Py_BEGIN_ALLOW_THREADS
		result = flock(fd, how);
		Py_END_ALLOW_THREADS
	} while (result < 0 && errno == EINTR && PyErr_CheckSignals() == 0);
	if (result == 0)
		Py_RETURN_NONE;
	return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
}

/* What a verb wants of stat(2): (mode, device, when its contents were changed, in ns). */
static PyObject *status(PyObject *self, PyObject *path)
{
	struct stat st;
	PyObject *bytes;
	int result;

	(void)self;
	if (!PyUnicode_FSConverter(path, &bytes))
		return NULL;
	result = stat(PyBytes_AS_STRING(bytes), &st);
	Py_DECREF(bytes);
	if (result < 0)
		return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
	return Py_BuildValue("IkL", st.st_mode, st.st_dev, st.st_mtim.tv_sec * 1000000000LL + st.st_mtim.tv_nsec);
}

static PyMethodDef functions[] = {
	{ "complete", complete, METH_NOARGS, "Make the rest of the interpreter." },
	{ "ordinary", ordinary, METH_NOARGS, "Become the python that was not embedded, from the start." },
	{ "json", json_plain, METH_O, "The value of a JSON text, or NotImplemented." },
	{ "pair", socket_pair, METH_NOARGS, "Two connected sockets." },
	{ "listen", socket_listen, METH_O, "A socket that listens at the path." },
	{ "connect", socket_connect, METH_O, "A socket that is connected to who listens at the path." },
	{ "send_fds", socket_send_fds, METH_VARARGS, "Write bytes, and hand descriptors over with them." },
	{ "lock", lock, METH_VARARGS, "flock(2)." },
	{ "piece", piece, METH_VARARGS, "What the cache holds at an offset." },
	{ "status", status, METH_O, "Mode, device and time of a file." },
	{ "timeout", socket_timeout, METH_VARARGS, "How many seconds one read or write may take." },
	{ NULL, NULL, 0, NULL },
};
static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, .m_name = "_launcher", .m_size = -1, .m_methods = functions };

/* Its name is that of a module that is built in, but it is there without an import, which takes 200,000 instructions. */
static PyObject *launcher(void)
{
	PyObject *made = PyModule_Create(&module);

	if (made && PyDict_SetItemString(PyImport_GetModuleDict(), module.m_name, made) < 0)
		Py_CLEAR(made);
	return made;
}

/* The head of the cache, which is its end (runtime/start.py): (code, table); NULL where it is none. */
static PyObject *read_head(const char *file)
{
	struct stat st;
	uint64_t n;
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) == 0 && st.st_size > 8) {
		cache = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
		cache_size = cache == MAP_FAILED ? 0 : (uint64_t)st.st_size;
	}
	close(fd);
	if (!cache_size)
		return NULL;
	memcpy(&n, cache + cache_size - 8, 8);
	return n <= cache_size - 8 ? PyMarshal_ReadObjectFromString(cache + cache_size - 8 - n, n) : NULL;
}

static void add_path(PyConfig *config, const char *directory)
{
	wchar_t *wide = Py_DecodeLocale(directory, NULL);

	if (wide)
		PyWideStringList_Append(&config->module_search_paths, wide);
	PyMem_RawFree(wide);
}

static int start(int argc, char **argv, const char *home, const char *packages, const char *python)
{
	PyPreConfig before;
	PyConfig config;
	PyStatus status;

#ifdef LAZY_FROZEN
	_PyRuntime._main_interpreter.gc.enabled = 0; /* while it starts, too */
#endif
	PyPreConfig_InitIsolatedConfig(&before);
	before.utf8_mode = 1;
	before.configure_locale = 0;
	if (PyStatus_Exception(Py_PreInitialize(&before)) || PyImport_AppendInittab("_launcher", launcher) < 0)
		return -1;
	PyConfig_InitIsolatedConfig(&config);
	config._init_main = 0;
	config.site_import = 0;
	config.parse_argv = 0;
	config.pathconfig_warnings = 0;
	config.install_signal_handlers = 1; /* in the main phase */
	config.module_search_paths_set = 1;
	add_path(&config, STDLIB);
	add_path(&config, EXTENSIONS);
	add_path(&config, home);
	add_path(&config, packages);
	PyConfig_SetBytesArgv(&config, argc, argv);
	/* Given, so that nothing looks for them. */
	PyConfig_SetBytesString(&config, &config.program_name, python);
	PyConfig_SetBytesString(&config, &config.executable, python);
	PyConfig_SetBytesString(&config, &config.base_executable, python);
	PyConfig_SetBytesString(&config, &config.prefix, PREFIX);
	PyConfig_SetBytesString(&config, &config.exec_prefix, PREFIX);
	PyConfig_SetBytesString(&config, &config.base_prefix, PREFIX);
	PyConfig_SetBytesString(&config, &config.base_exec_prefix, PREFIX);
	PyConfig_SetBytesString(&config, &config.stdlib_dir, STDLIB);
	status = Py_InitializeFromConfig(&config);
	PyConfig_Clear(&config);
	/*
	 * Signals are wanted before the main phase, but without SIGINT's exception: that takes the module _signal, whose import
	 * (0.1 ms) brings it to the verbs that have something to undo.
	 */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	if (PyStatus_Exception(status) || _PySignal_Init(0) < 0 || !launcher())
		return -1;
#ifdef LAZY_FROZEN
	return make_posix();
#else
	return 0;
#endif
}

static PyObject *arguments(int argc, char **argv)
{
	PyObject *list = PyList_New(argc);

	for (int i = 0; list && i < argc; i++)
		PyList_SET_ITEM(list, i, PyUnicode_DecodeFSDefault(argv[i]));
	return list;
}

/* Returns where it cannot do what it is for, before anything was done. */
void embedded(int argc, char **argv, const char *home, const char *packages, const char *python, void (*otherwise)(void))
{
	PyObject *head, *names, *main;
	char file[PATH_MAX];
	int interrupted;

	become_ordinary = otherwise;
	if (snprintf(file, sizeof file, "%s/pycontain/runtime/__pycache__/start.4.cpython-3%d", home, PY_MINOR_VERSION) >=
	    (int)sizeof file || access(file, R_OK) < 0 || start(argc, argv, home, packages, python) < 0)
		return;
	head = read_head(file);
	names = Py_BuildValue("{sssO}", "__name__", "pycontain.runtime.start", "__builtins__", PyEval_GetBuiltins());
	if (!head || !names || !PyTuple_Check(head) || PyTuple_GET_SIZE(head) != 2 ||
	    !PyCode_Check(PyTuple_GET_ITEM(head, 0)) || PySys_SetObject("argv", arguments(argc, argv)) < 0 ||
	    !PyEval_EvalCode(PyTuple_GET_ITEM(head, 0), names, names) ||
	    !(main = PyDict_GetItemString(names, "embedded")))
		return;
	PyGC_Disable(); /* as in launcher.c */
	/* Does not return but by an exception. */
	PyObject_CallFunction(main, "sOss", file, PyTuple_GET_ITEM(head, 1), EXTENSIONS, SUFFIX);
	interrupted = PyErr_ExceptionMatches(PyExc_KeyboardInterrupt);
	PyErr_Print();
	if (interrupted) {
		signal(SIGINT, SIG_DFL);
		raise(SIGINT);
	}
	Py_FinalizeEx(); /* for what is in the buffers of the standard streams */
	_exit(1);
}
