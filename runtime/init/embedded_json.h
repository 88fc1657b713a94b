/* JSON as nearly all of it is, for runtime/jsontext.py: objects, arrays, strings without escapes, integers of up to 18
 * digits and the three words. What is anything else, wrong included, is left to the interpreter's own scanner, whose
 * module takes 0.2 ms to load; so there are no words for errors here, and nothing is accepted that it refuses. */
#pragma once
#define JSON_DEPTH_MAX 100

struct json {
	const char *at, *end;
	unsigned depth;
};

/* Each of these: NULL, without an exception or with one, where it is not what is meant here. */
static PyObject *json_value(struct json *j);

static int json_next(struct json *j, char c)
{
	while (j->at < j->end && (*j->at == ' ' || *j->at == '\n' || *j->at == '\t' || *j->at == '\r'))
		j->at++;
	if (j->at == j->end || *j->at != c)
		return 0;
	j->at++;
	return 1;
}

static PyObject *json_string(struct json *j)
{
	const char *from = j->at;

	while (j->at < j->end && *j->at != '"' && *j->at != '\\' && (unsigned char)*j->at >= ' ')
		j->at++;
	if (j->at == j->end || *j->at != '"')
		return NULL;
	return PyUnicode_DecodeUTF8(from, j->at++ - from, NULL);
}

static PyObject *json_integer(struct json *j)
{
	int minus = *j->at == '-';
	const char *from = j->at += minus;
	long long value = 0;

	while (j->at < j->end && *j->at >= '0' && *j->at <= '9' && j->at - from < 18)
		value = 10 * value + *j->at++ - '0';
	if (j->at == from || (*from == '0' && j->at - from > 1) ||
	    (j->at < j->end && ((*j->at >= '0' && *j->at <= '9') || strchr(".eE", *j->at))))
		return NULL;
	return PyLong_FromLongLong(minus ? -value : value);
}

static PyObject *json_word(struct json *j, const char *word, PyObject *value)
{
	size_t n = strlen(word);

	if ((size_t)(j->end - j->at) < n || memcmp(j->at, word, n))
		return NULL;
	j->at += n;
	return Py_NewRef(value);
}

static int json_member(struct json *j, PyObject *object)
{
	PyObject *key = json_next(j, '"') ? json_string(j) : NULL, *value = key && json_next(j, ':') ? json_value(j) : NULL;
	int done = value && PyDict_SetItem(object, key, value) == 0;

	Py_XDECREF(key);
	Py_XDECREF(value);
	return done;
}

static int json_item(struct json *j, PyObject *array)
{
	PyObject *value = json_value(j);
	int done = value && PyList_Append(array, value) == 0;

	Py_XDECREF(value);
	return done;
}

static PyObject *json_container(struct json *j, PyObject *empty, int (*one)(struct json *, PyObject *), char end)
{
	int done = empty && json_next(j, end);

	if (empty && !done) {
		do
			done = one(j, empty);
		while (done && json_next(j, ','));
		done = done && json_next(j, end);
	}
	if (done)
		return empty;
	Py_XDECREF(empty);
	return NULL;
}

static PyObject *json_value(struct json *j)
{
	PyObject *value = NULL;

	if (j->depth++ == JSON_DEPTH_MAX)
		return NULL;
	if (json_next(j, '"'))
		value = json_string(j);
	else if (json_next(j, '{'))
		value = json_container(j, PyDict_New(), json_member, '}');
	else if (json_next(j, '['))
		value = json_container(j, PyList_New(0), json_item, ']');
	else if (j->at < j->end)
		switch (*j->at) {
		case 't': value = json_word(j, "true", Py_True); break;
		case 'f': value = json_word(j, "false", Py_False); break;
		case 'n': value = json_word(j, "null", Py_None); break;
		default: value = json_integer(j);
		}
	j->depth--;
	return value;
}

/* The value of a text, or NotImplemented. */
static PyObject *json_plain(PyObject *self, PyObject *bytes)
{
	struct json j = { .depth = 0 };
	PyObject *value;

	(void)self;
	if (!PyBytes_Check(bytes))
		Py_RETURN_NOTIMPLEMENTED;
	j.at = PyBytes_AS_STRING(bytes);
	j.end = j.at + PyBytes_GET_SIZE(bytes);
	value = json_value(&j);
	if (value && !json_next(&j, '\0') && j.at == j.end)
		return value;
	Py_XDECREF(value);
	if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
		return NULL;
	PyErr_Clear();
	Py_RETURN_NOTIMPLEMENTED;
}
