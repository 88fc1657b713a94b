/* A process of the host that attacks try to reach. Its secrets come over standard input, so that they are nowhere
 * else than where an attack is to find them; it ends with its standard input. */
#define _GNU_SOURCE
#include "probe.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { MEMORY, DESCRIPTOR, SOCKET, ABSTRACT, TCP, SYSV, SHARED, QUEUE, KEY, SECRETS };
static char secret[SECRETS][128];

static void must(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "decoy: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static int listener(int family, const void *address, socklen_t size, const char *what)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	must(fd >= 0 && !bind(fd, address, size) && !listen(fd, 8), what);
	return fd;
}

static int unix_listener(const char *name, int abstract)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int length = snprintf(at.sun_path + abstract, sizeof(at.sun_path) - (size_t)abstract, "%s", name), fd;

	fd = listener(AF_UNIX, &at, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)(length + 1)), name);
	if (!abstract)
		must(!chmod(name, 0666), name);
	return fd;
}

/* What this kernel has not: the claim is not tried then. */
static char lacking[128];

static int have(int good, const char *claim)
{
	if (!good)
		snprintf(lacking + strlen(lacking), sizeof(lacking) - strlen(lacking), "%s%s", *lacking ? "," : "", claim);
	return good;
}

/* The keyring of a user outlives every process of this world: the key ends by itself soon after this one. It is made
 * in a keyring of this process, which possesses it by that. */
static long user_key(const char *name)
{
	long id = syscall(SYS_add_key, "user", name, secret[KEY], strlen(secret[KEY]), KEY_SPEC_PROCESS_KEYRING);

	if (id >= 0 && (syscall(SYS_keyctl, KEYCTL_SET_TIMEOUT, id, 60) ||
			syscall(SYS_keyctl, KEYCTL_LINK, id, KEY_SPEC_USER_KEYRING)))
		return -1;
	return id;
}

static void hand_out(int listening, const char *what)
{
	int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	send(fd, what, strlen(what), MSG_NOSIGNAL);
	close(fd);
}

PROBE(decoy, "what attacks try to reach: socket=PATH abstract=NAME shm_name=/NAME queue=/NAME user_key=NAME; secrets by stdin")
{
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct mq_attr attr = { .mq_maxmsg = 2, .mq_msgsize = 128 };
	socklen_t size = sizeof(any);
	struct signalfd_siginfo sent;
	sigset_t urgent;
	void *shared;
	int id, fd, held;
	mqd_t queue;
	long key;

	prctl(PR_SET_DUMPABLE, 1);
	umask(0);
	for (int i = 0; i < SECRETS; i++) {
		must(fgets(secret[i], sizeof(secret[i]), stdin) != NULL, "read the secrets");
		secret[i][strcspn(secret[i], "\n")] = 0;
	}
	sigemptyset(&urgent);
	sigaddset(&urgent, SIGURG);
	sigprocmask(SIG_BLOCK, &urgent, NULL);
	struct pollfd all[] = {
		{ .fd = 0, .events = POLLIN },
		{ .fd = signalfd(-1, &urgent, SFD_CLOEXEC), .events = POLLIN },
		{ .fd = unix_listener(text(args, "socket", ""), 0), .events = POLLIN },
		{ .fd = unix_listener(text(args, "abstract", ""), 1), .events = POLLIN },
		{ .fd = listener(AF_INET, &any, sizeof(any), "listen on the loopback address"), .events = POLLIN },
	};
	must(!getsockname(all[4].fd, (struct sockaddr *)&any, &size), "getsockname");
	held = memfd_create("secret", MFD_CLOEXEC);
	must(held >= 0 && write(held, secret[DESCRIPTOR], strlen(secret[DESCRIPTOR])) > 0, "make a file to hold");
	id = shmget((key_t)number(args, "shm_key", 0), 4096, IPC_CREAT | IPC_EXCL | 0666);
	shared = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
	if (have(shared != (void *)-1, "shared_memory_sysv"))
		strcpy(shared, secret[SYSV]);
	fd = shm_open(text(args, "shm_name", ""), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	have(fd >= 0 && write(fd, secret[SHARED], strlen(secret[SHARED])) > 0, "shared_memory_posix");
	queue = mq_open(text(args, "queue", ""), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666, &attr);
	have(queue >= 0 && !mq_send(queue, secret[QUEUE], strlen(secret[QUEUE]), 0), "message_queue");
	key = user_key(text(args, "user_key", ""));
	have(key >= 0, "keyring_user");

	json_number("pid", getpid());
	json_number("address", (double)(uintptr_t)secret[MEMORY]);
	json_number("descriptor", held);
	json_number("port", ntohs(any.sin_port));
	json_text("lacking", lacking);
	json_line();
	for (;;) {
		int some = poll(all, sizeof(all) / sizeof(*all), 20000);

		if (some < 0 && errno != EINTR)
			return errno;
		if (key >= 0)
			syscall(SYS_keyctl, KEYCTL_SET_TIMEOUT, key, 60);
		if (some <= 0)
			continue;
		if (all[0].revents)
			break;
		if (all[1].revents && read(all[1].fd, &sent, sizeof(sent)) == sizeof(sent)) {
			json_number("signalled", sent.ssi_int);
			json_line();
		}
		for (int i = SOCKET; i <= TCP; i++)
			if (all[i].revents)
				hand_out(all[i].fd, secret[i]);
	}
	if (key >= 0)
		syscall(SYS_keyctl, KEYCTL_UNLINK, key, KEY_SPEC_USER_KEYRING);
	shmctl(id, IPC_RMID, NULL);
	shm_unlink(text(args, "shm_name", ""));
	mq_unlink(text(args, "queue", ""));
	unlink(text(args, "socket", ""));
	return 0;
}
