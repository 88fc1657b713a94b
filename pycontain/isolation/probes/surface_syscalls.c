/* Every system call by its number, twice: does a filter refuse it, and does the kernel have it?
 *
 * The first question is asked without a call being made. A filter of our own, on top of those that are there, answers
 * calls that carry a mark in their sixth argument with SECCOMP_RET_TRACE. Without a tracer the kernel skips such a call
 * and returns ENOSYS; but a filter below that says ERRNO, TRAP or KILL outranks TRACE (seccomp(2)), and shows.
 * The second is asked of the kernel itself, in a child, with arguments that it cannot act on.
 */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define MARK 0x5ca1ab1e
#define ENDED -1    /* the child was ended by the call: by a signal, an exit, or it waits */
#define NOT_MADE -2 /* a filter refuses it, or it is spared */
#define UNTRIED -3

static int word;

/* Arguments for calls that all ones would reach further into than an error, or that answer ENOSYS to all ones. */
static const struct {
	long number, arguments[3];
} careful[] = {
	{ SYS_kill, { 0x7fffffff, 0 } },
	{ SYS_futex, { (long)&word, FUTEX_WAKE, 0 } },
	{ SYS_msgget, { 0x7e577e57, 0 } },
	{ SYS_shmget, { 0x7e577e57, 0, 0 } },
	{ SYS_init_module, { 0, 0, 0 } },
	{ SYS_flock, { -1, LOCK_UN } },
#ifdef SYS_modify_ldt
	{ SYS_modify_ldt, { 0, 0, 0 } },
#endif
};

/* Calls that are not made. Every kernel has them: no program ends, and no handler returns, without the first two. To
 * write back all of a machine's files for the third would be felt by its neighbours. */
static const long spared[] = { SYS_exit_group, SYS_rt_sigreturn, SYS_sync };

/* In line: what vfork(2) returns into must not lie on a stack that two processes use. Returns minus an errno. */
static inline __attribute__((always_inline)) long raw(long number, const long *a)
{
#if defined(__x86_64__)
	long result;
	register long r10 __asm__("r10") = a[3];
	register long r8 __asm__("r8") = a[4];
	register long r9 __asm__("r9") = a[5];

	__asm__ volatile("syscall" : "=a"(result)
			 : "0"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a[0];
	register long x1 __asm__("x1") = a[1];
	register long x2 __asm__("x2") = a[2];
	register long x3 __asm__("x3") = a[3];
	register long x4 __asm__("x4") = a[4];
	register long x5 __asm__("x5") = a[5];

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#else
#error "how does this machine make a system call?"
#endif
}

/* A filter of one's own; 0, or an errno. It stays with this process and its children. */
static int mark_filter(void)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MARK, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { sizeof(program) / sizeof(*program), program };
	const long marked[6] = { 0, 0, 0, 0, 0, MARK };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
		return errno;
	return raw(SYS_getpid, marked) == -ENOSYS ? 0 : ENOTSUP; /* else marked calls would be made */
}

/* The kernel itself puts uretprobe(2) and uprobe(2) into programs, and lets no filter see them. */
static bool unfiltered(long call)
{
#ifdef __x86_64__
	return call == 335 || call == 336;
#else
	return call < 0;
#endif
}

/* In a child: what filters answer to each call, 0 where they let it through, until one ends the child. */
static void ask_filters(int *answers, long count)
{
	const long zeros[6] = { 0, 0, 0, 0, 0, MARK }, ones[6] = { -1, -1, -1, -1, -1, MARK };
	int error = mark_filter();

	for (long call = 0; call < count && !error; call++) {
		if (answers[call] != UNTRIED)
			continue;
		if (unfiltered(call)) {
			answers[call] = 0;
			continue;
		}
		answers[call] = ENDED; /* until it comes back */
		answers[call] = raw(call, zeros) == -ENOSYS ? 0 : (int)-raw(call, ones);
		if (answers[call] == ENOSYS)
			answers[call] = 0; /* or the filter's own ENOSYS, which then the kernel seems to give */
	}
	for (;;) /* not by _exit(3): the register of the mark may still hold it */
		raw(SYS_exit_group, (const long[6]){ error });
}

static int all_filters(int *answers, long count)
{
	int status;

	for (long call = 0; call < count; call++)
		answers[call] = UNTRIED;
	if (prctl(PR_GET_SECCOMP) < 0 && errno == EINVAL) { /* a kernel without seccomp */
		memset(answers, 0, (size_t)count * sizeof(*answers));
		return 0;
	}
	do {
		pid_t child = fork();

		if (!child)
			ask_filters(answers, count);
		if (child < 0 || waitpid(child, &status, 0) < 0)
			return errno;
	} while (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
	return WIFEXITED(status) ? WEXITSTATUS(status) : EIO;
}

/* In a child of a session of its own, so that vhangup(2) has no terminal. */
static void ask_kernel(long call, int *answer)
{
	const struct itimerval soon = { .it_value = { 0, 20000 } }, late = { .it_value = { 1, 0 } };
	long arguments[6] = { -1, -1, -1, -1, -1, -1 }, result;
	bool waits = false, forks = false;

#ifdef SYS_pause
	waits = call == SYS_pause;
	forks = call == SYS_fork || call == SYS_vfork;
#endif
	for (size_t i = 0; i < sizeof(careful) / sizeof(*careful); i++)
		if (careful[i].number == call)
			memcpy(arguments, careful[i].arguments, sizeof(careful[i].arguments));
	setsid();
	setitimer(ITIMER_REAL, waits ? &soon : &late, NULL);
	result = raw(call, arguments);
	if (!result && forks)
		raw(SYS_exit_group, arguments);
	*answer = result < 0 && result > -4096 ? (int)-result : 0;
	_exit(0);
}

PROBE(surface_syscalls, "what filters answer to the first calls= system calls, and what the kernel does")
{
	long count = number(args, "calls", 512);
	size_t size = (size_t)count * 2 * sizeof(int);
	int *filter, *kernel, error;
	double *values;

	filter = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	values = calloc((size_t)count, sizeof(*values));
	if (filter == MAP_FAILED || !values)
		return ENOMEM;
	kernel = filter + count;
	error = all_filters(filter, count);
	if (error)
		return error;
	for (long call = 0; call < count; call++) {
		bool made = !filter[call];
		pid_t child;

		for (size_t i = 0; i < sizeof(spared) / sizeof(*spared); i++)
			made = made && spared[i] != call;
		kernel[call] = made ? ENDED : NOT_MADE;
		if (!made)
			continue;
		child = fork();
		if (!child)
			ask_kernel(call, kernel + call);
		if (child < 0 || waitpid(child, NULL, 0) < 0)
			return errno;
	}
	for (long call = 0; call < count; call++)
		values[call] = filter[call];
	json_numbers("filter", values, (size_t)count);
	for (long call = 0; call < count; call++)
		values[call] = kernel[call];
	json_numbers("kernel", values, (size_t)count);
	free(values);
	return 0;
}
