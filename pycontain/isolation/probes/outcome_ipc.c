/* Attacks by the means of processes that talk to each other: sockets, shared memory, queues, keys. */
#define _GNU_SOURCE
#include "outcome.h"
#include "probe.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if_ether.h>
#include <linux/keyctl.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static void talk(int family, const void *address, socklen_t size, const char *how)
{
	struct timeval wait = { .tv_sec = 1 };
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0) {
		refused("socket");
		return;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait)); /* of connect, too */
	if (connect(fd, address, size)) {
		refused("connect");
		close(fd);
		return;
	}
	read_decoy(fd, how);
}

ATTACK(socket_path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };

	for (int i = 0; roots[i] && !done(); i++) {
		snprintf(to.sun_path, sizeof(to.sun_path), "%s%s", roots[i], text(args, "socket", "/"));
		talk(AF_UNIX, &to, sizeof(to), "connect to its path");
	}
}

ATTACK(socket_abstract)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int size = snprintf(to.sun_path + 1, sizeof(to.sun_path) - 1, "%s", text(args, "abstract", ""));

	talk(AF_UNIX, &to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1) + (socklen_t)size,
	     "connect to its abstract name");
}

ATTACK(socket_tcp)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)number(args, "port", 0)),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

	talk(AF_INET, &to, sizeof(to), "a TCP connection to the loopback address");
}

/* Whoever has CAP_NET_RAW in the host's network sees all that goes over its loopback. */
ATTACK(network_capture)
{
	int fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ALL));
	struct timeval wait = { .tv_usec = 50000 };
	uint64_t until = now_ns() + 150000000;
	char bytes[2048];

	if (fd < 0) {
		refused("socket(AF_PACKET)");
		return;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
	while (now_ns() < until && !done()) {
		ssize_t size = recv(fd, bytes, sizeof(bytes), 0);

		if (size > 0)
			saw(bytes, (size_t)size, "a packet socket");
	}
	errno = 0;
	refused("a packet socket heard no packet");
}

ATTACK(shared_memory_sysv)
{
	int id = shmget((key_t)number(args, "shm_key", 0), 0, 0);
	void *at = id < 0 ? NULL : shmat(id, NULL, SHM_RDONLY);

	if (id < 0 || at == (void *)-1)
		refused(id < 0 ? "shmget" : "shmat");
	else
		saw(at, 128, "shmat");
}

ATTACK(shared_memory_posix)
{
	char path[PATH_MAX];

	for (int i = 0; roots[i] && !done(); i++) {
		snprintf(path, sizeof(path), "%s/dev/shm%s", roots[i], text(args, "shm_name", "/"));
		read_decoy(open(path, O_RDONLY | O_CLOEXEC), "shm_open");
	}
}

ATTACK(message_queue)
{
	mqd_t queue = mq_open(text(args, "queue", "/"), O_RDWR | O_NONBLOCK | O_CLOEXEC);
	char bytes[8192];
	ssize_t size;

	if (queue < 0) {
		refused("mq_open");
		return;
	}
	size = mq_receive(queue, bytes, sizeof(bytes), NULL);
	if (size < 0) {
		refused("mq_receive");
		return;
	}
	mq_send(queue, bytes, (size_t)size, 0); /* and it is there as before */
	saw(bytes, (size_t)size, "mq_receive");
}

static void key(long ring, const char *name, const char *how)
{
	char bytes[128];
	/* linked into a keyring of its own, so that it possesses the key and may read it */
	long id = syscall(SYS_keyctl, KEYCTL_SEARCH, ring, "user", name, KEY_SPEC_PROCESS_KEYRING), size;

	size = id < 0 ? -1 : syscall(SYS_keyctl, KEYCTL_READ, id, bytes, sizeof(bytes));
	if (size < 0)
		refused(id < 0 ? "keyctl(KEYCTL_SEARCH)" : "keyctl(KEYCTL_READ)");
	else
		saw(bytes, (size_t)size < sizeof(bytes) ? (size_t)size : sizeof(bytes), how);
}

ATTACK(keyring_session)
{
	key(KEY_SPEC_SESSION_KEYRING, text(args, "session_key", ""), "a search of the session keyring");
}

ATTACK(keyring_user)
{
	key(KEY_SPEC_USER_KEYRING, text(args, "user_key", ""), "a search of the user keyring");
}
