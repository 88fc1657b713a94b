/* Doors of the kernel: what is behind them is large, and has had holes. To come in is all that is tried. */
#define _GNU_SOURCE
#include "outcome.h"
#include "probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_alg.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <linux/vm_sockets.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void opens(long result, const char *call)
{
	if (result < 0)
		refused(call);
	else
		reached(call);
}

ATTACK(user_namespace)
{
	opens(unshare(CLONE_NEWUSER), "unshare(CLONE_NEWUSER)");
}

ATTACK(mount)
{
	if (!own_mounts())
		opens(mount("tmpfs", mount_point(), "tmpfs", 0, NULL), "mount of a tmpfs");
}

ATTACK(mount_nested)
{
	const char *at = mount_point();

	if (new_user_namespace(CLONE_NEWNS))
		return;
	if (mount("tmpfs", at, "tmpfs", 0, NULL) || chdir(at))
		refused("mount of a tmpfs in a new user namespace");
	else
		opens(syscall(SYS_pivot_root, ".", "."), "pivot_root in a new user namespace");
}

ATTACK(io_uring)
{
	struct io_uring_params params = { 0 };

	opens(syscall(SYS_io_uring_setup, 4, &params), "io_uring_setup");
}

ATTACK(bpf)
{
	struct bpf_insn program[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K }, { .code = BPF_JMP | BPF_EXIT } };
	union bpf_attr attr = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2, .insns = (uintptr_t)program,
				.license = (uintptr_t) "GPL" };

	opens(syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr)), "bpf(BPF_PROG_LOAD)");
}

ATTACK(perf)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(attr),
					.config = PERF_COUNT_SW_TASK_CLOCK, .disabled = 1, .exclude_kernel = 1 };

	opens(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0), "perf_event_open");
}

ATTACK(userfaultfd)
{
	if (syscall(SYS_userfaultfd, O_CLOEXEC) >= 0)
		reached("userfaultfd");
	else
		opens(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY), "userfaultfd(UFFD_USER_MODE_ONLY)");
}

ATTACK(crypto_socket)
{
	struct sockaddr_alg to = { .salg_family = AF_ALG, .salg_type = "hash", .salg_name = "sha256" };
	int fd = socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		refused("socket(AF_ALG)");
	else
		opens(bind(fd, (struct sockaddr *)&to, sizeof(to)), "bind of an AF_ALG socket");
}

ATTACK(vsock)
{
	opens(socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket(AF_VSOCK)");
}

ATTACK(packet_socket)
{
	opens(socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket(AF_PACKET)");
}

ATTACK(keyctl)
{
	opens(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1), "keyctl(KEYCTL_GET_KEYRING_ID)");
}

/* Without randomised addresses a hole of a program is easier to use. */
ATTACK(personality)
{
	opens(personality(ADDR_NO_RANDOMIZE | READ_IMPLIES_EXEC), "personality(ADDR_NO_RANDOMIZE | READ_IMPLIES_EXEC)");
}

/* Files that tell of the host, or of its other tenants: there is something in them, or they are masked. */
static int tells(const char *path)
{
	struct stat status;
	char byte;
	int fd, is = 0;
	DIR *all;

	if (stat(path, &status))
		return 0;
	if (S_ISDIR(status.st_mode)) {
		all = opendir(path);
		for (struct dirent *entry; all && (entry = readdir(all));)
			is |= entry->d_name[0] != '.';
		if (all)
			closedir(all);
		return is;
	}
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	is = fd >= 0 && S_ISREG(status.st_mode) && read(fd, &byte, 1) == 1;
	if (fd >= 0)
		close(fd);
	return is;
}

ATTACK(masked_files)
{
	static const char *const files[] = { "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/latency_stats",
					     "/proc/sched_debug", "/proc/scsi", "/proc/acpi", "/sys/firmware",
					     "/sys/devices/virtual/powercap", "/sys/kernel/security", "/sys/kernel/debug", NULL };
	char how[512] = "";

	for (int turn = 0; turn < 2 && !*how; turn++) {
		if (turn && own_mounts() && new_user_namespace(CLONE_NEWNS))
			break;
		for (int i = 0; files[i]; i++) {
			if (turn)
				umount2(files[i], MNT_DETACH);
			if (tells(files[i]))
				snprintf(how + strlen(how), sizeof(how) - strlen(how), "%s%s", *how ? ", " : "", files[i]);
		}
		errno = 0;
		refused("each of them is empty or not there");
	}
	if (*how)
		reached(how);
}
