/* Calls on sockets for runtime/sockets.py, which says why; included by embedded.c. */
#pragma once

static PyObject *socket_pair(PyObject *self, PyObject *none)
{
	int fds[2];

	(void)self, (void)none;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return Py_BuildValue("ii", fds[0], fds[1]);
}

/* A descriptor of a stream socket that listens at, or is connected to, the path given. */
static PyObject *socket_at(PyObject *path, int backlog)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	Py_ssize_t n;
	const char *text = PyUnicode_AsUTF8AndSize(path, &n);
	int fd, result;

	if (!text)
		return NULL;
	if ((size_t)n >= sizeof address.sun_path)
		return PyErr_Format(PyExc_OSError, "AF_UNIX path too long");
	memcpy(address.sun_path, text, n);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (backlog)
		result = bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ? -1 : listen(fd, backlog);
	else
		do
			result = connect(fd, (struct sockaddr *)&address, sizeof address);
		while (result < 0 && errno == EINTR && PyErr_CheckSignals() == 0);
	if (result == 0)
		return PyLong_FromLong(fd);
	if (!PyErr_Occurred())
		PyErr_SetFromErrno(PyExc_OSError);
	close(fd);
	return NULL;
}

static PyObject *socket_listen(PyObject *self, PyObject *path)
{
	(void)self;
	return socket_at(path, 1);
}

static PyObject *socket_connect(PyObject *self, PyObject *path)
{
	(void)self;
	return socket_at(path, 0);
}

static PyObject *socket_timeout(PyObject *self, PyObject *args)
{
	struct timeval limit;
	double seconds;
	int fd;

	(void)self;
	if (!PyArg_ParseTuple(args, "id", &fd, &seconds))
		return NULL;
	limit.tv_sec = (time_t)seconds;
	limit.tv_usec = (suseconds_t)((seconds - limit.tv_sec) * 1e6);
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *socket_send_fds(PyObject *self, PyObject *args)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(253 * sizeof(int))]; /* SCM_MAX_FD of unix(7) */
	} control = { 0 };
	struct iovec v;
	struct msghdr message = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &control };
	PyObject *list;
	Py_ssize_t n;
	int fd;
	ssize_t sent;

	(void)self;
	if (!PyArg_ParseTuple(args, "iy#O!", &fd, &v.iov_base, &v.iov_len, &PyList_Type, &list))
		return NULL;
	n = PyList_GET_SIZE(list);
	if (n > 253)
		return PyErr_Format(PyExc_ValueError, "found %zd descriptors, wanted at most 253", n);
	message.msg_controllen = CMSG_SPACE(n * sizeof(int));
	control.head = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n * sizeof(int)) };
	for (Py_ssize_t i = 0; i < n; i++) {
		((int *)CMSG_DATA(&control.head))[i] = (int)PyLong_AsLong(PyList_GET_ITEM(list, i));
		if (PyErr_Occurred())
			return NULL;
	}
	do
		sent = sendmsg(fd, &message, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR && PyErr_CheckSignals() == 0);
	if (sent < 0)
		return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}
