/* A guest without a machine, for tests/unit/test_relay.py: each connection to the listening socket argv[1] is a port. */
#define main init_main
#pragma clang diagnostic ignored "-Wunused-function"
#include "../../runtime/init/init.c"
#undef main

int main(int argc, char **argv)
{
	int listener = argc > 1 ? atoi(argv[1]) : -1;
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	for (;;) {
		int port = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (port < 0)
			return 1;
		if (fork() == 0)
			serve(port);
		close(port);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}
