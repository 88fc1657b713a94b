/*
 * pid 1 of the test machine: loads the modules of the initramfs, makes the host's / (shared read-only by
 * virtiofs) the root below a tmpfs overlay, runs one command in it, and writes its exit status to a port.
 *
 * Given in the initramfs: /m/list (module files, one per line, in loading order), /cfg/argv, /cfg/env (each
 * NUL-separated), /cfg/cwd, /cfg/modules (the host's path of the kernel's module tree, or empty). Where /cfg/units (unit
 * files) is there, systemd becomes pid 1, and the command runs beside it once a unit has made /run/ready.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_WORDS 1024

static int status_port = -1;

static void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

__attribute__((format(printf, 1, 2))) static void die(const char *format, ...)
{
	int number = errno;
	char text[512];
	va_list list;

	va_start(list, format);
	int length = vsnprintf(text, sizeof(text) - 64, format, list);
	va_end(list);
	if (length < 0 || length > (int)sizeof(text) - 64)
		length = (int)strlen(text);
	length += snprintf(text + length, 64, ": %s\n", strerror(number));
	dprintf(2, "test machine: %s", text);
	if (status_port >= 0)
		dprintf(status_port, "error %s", text);
	power_off();
}

static void mount_at(const char *type, const char *source, const char *target, unsigned long flags, const char *data)
{
	if (mkdir(target, 0755) < 0 && errno != EEXIST)
		die("make %s", target);
	if (mount(source, target, type, flags, data) < 0)
		die("mount %s (%s) at %s", source, type ? type : "bind", target);
}

/* The whole file, NUL-terminated, never freed; *length without the NUL. NULL where there is none. */
static char *slurp(const char *path, size_t *length)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat info;

	if (fd < 0)
		return NULL;
	if (fstat(fd, &info) < 0)
		die("stat %s", path);
	char *data = malloc((size_t)info.st_size + 1);
	size_t have = 0;

	if (!data)
		die("read %s", path);
	while (have < (size_t)info.st_size) {
		ssize_t count = read(fd, data + have, (size_t)info.st_size - have);

		if (count < 0)
			die("read %s", path);
		if (count == 0)
			break; /* sysfs says a page and has less */
		have += (size_t)count;
	}
	close(fd);
	data[have] = 0;
	if (length)
		*length = have;
	return data;
}

static char **words(const char *path)
{
	size_t length = 0, count = 0;
	char *data = slurp(path, &length), **list = calloc(MAX_WORDS + 1, sizeof(char *));

	if (!data || !list)
		die("read %s", path);
	for (char *word = data; word < data + length && count < MAX_WORDS; word += strlen(word) + 1)
		list[count++] = word;
	return list;
}

static void load_modules(void)
{
	char *list = slurp("/m/list", NULL), *rest;

	if (!list)
		return;
	for (char *name = strtok_r(list, "\n", &rest); name; name = strtok_r(NULL, "\n", &rest)) {
		char path[256];

		snprintf(path, sizeof(path), "/m/%s", name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0)
			die("open %s", path);
		/* A module that finds no hardware (ENODEV) is no loss. */
		if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST && errno != ENODEV)
			die("load %s", path);
		close(fd);
	}
}

/* The character device of the virtio-serial port called name; waits up to 5 s for the driver. */
static int open_port(const char *name)
{
	for (int attempt = 0; attempt < 500; attempt++) {
		DIR *ports = opendir("/sys/class/virtio-ports");

		for (struct dirent *entry; ports && (entry = readdir(ports));) {
			char path[600];

			if (entry->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
			char *found = slurp(path, NULL);

			if (!found)
				continue;
			found[strcspn(found, "\n")] = 0;
			if (strcmp(found, name))
				continue;
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			int fd = open(path, O_WRONLY | O_CLOEXEC);

			if (fd >= 0) {
				closedir(ports);
				return fd;
			}
		}
		if (ports)
			closedir(ports);
		usleep(10000);
	}
	die("find the virtio port %s", name);
	return -1;
}

static void make_root(void)
{
	mount_at("virtiofs", "root", "/host", MS_RDONLY, NULL);
	mount_at("tmpfs", "rw", "/rw", 0, "mode=755");
	mkdir("/rw/upper", 0755);
	mkdir("/rw/work", 0755);
	mount_at("overlay", "overlay", "/root", 0, "lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work");
	mount_at("proc", "proc", "/root/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_at("sysfs", "sysfs", "/root/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_at("cgroup2", "cgroup2", "/root/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate");
	mount_at("devtmpfs", "dev", "/root/dev", MS_NOSUID, "mode=755");
	mount_at("devpts", "devpts", "/root/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
	mount_at("tmpfs", "shm", "/root/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_at("mqueue", "mqueue", "/root/dev/mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_at("tmpfs", "run", "/root/run", MS_NOSUID | MS_NODEV, "mode=755");
	/* Overlay uppers want a file system with user xattrs, and io.max a disk. */
	mount_at("ext4", "/dev/vda", "/root/scratch", MS_NOSUID, NULL);
	if (mkdir("/root/scratch/tmp", 01777) < 0 || chmod("/root/scratch/tmp", 01777) < 0)
		die("make /scratch/tmp");
	mkdir("/root/scratch/pycontain", 0700);
	mount_at(NULL, "/root/scratch/pycontain", "/root/var/lib/pycontain", MS_BIND, NULL);

	char *modules = slurp("/cfg/modules", NULL);
	struct utsname kernel;

	if (modules && *modules && !uname(&kernel)) {
		/* Lets the kernel's own request_module find what init did not load. */
		char source[600], target[600];

		snprintf(source, sizeof(source), "/root%s", modules);
		mkdir("/root/lib/modules", 0755);
		snprintf(target, sizeof(target), "/root/lib/modules/%s", kernel.release);
		mount_at(NULL, source, target, MS_BIND, NULL);
	}
	symlink("/proc/self/fd", "/root/dev/fd");
	symlink("/proc/self/fd/0", "/root/dev/stdin");
	symlink("/proc/self/fd/1", "/root/dev/stdout");
	symlink("/proc/self/fd/2", "/root/dev/stderr");
}

static bool has_units(void)
{
	return access("/cfg/units", F_OK) == 0;
}

/* systemd's: unit files of ours alone decide what starts; it finds the cgroups and mounts that are there and keeps them. */
static void make_units(void)
{
	mkdir("/root/run/systemd", 0755);
	mount_at(NULL, "/cfg/units", "/root/run/systemd/system", MS_BIND, NULL);
	/* Generators read fstab and the like, a process each; their units are not wanted. */
	mount_at("tmpfs", "none", "/root/lib/systemd/system-generators", MS_NOSUID | MS_NODEV, "mode=755");
	/* A machine without an id is one that was never booted, and all its units are set up then. */
	int fd = open("/root/etc/machine-id", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);

	if (fd < 0 || write(fd, "0123456789abcdef0123456789abcdef\n", 33) != 33)
		die("write /etc/machine-id");
	close(fd);
}

/* Returns in a process that is not pid 1, when systemd is up and answers on the bus. */
static void become_systemd(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid) {
		execl("/lib/systemd/systemd", "systemd", "--unit=ready.target", NULL);
		die("run systemd");
	}
	for (int attempt = 0; access("/run/ready", F_OK) < 0; attempt++) {
		if (attempt == 6000)
			die("wait for systemd");
		usleep(10000);
	}
}

static void enter_root(void)
{
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		die("enter the root");
	/* As systemd leaves it on ordinary hosts: mounts propagate unless somebody says otherwise. */
	if (mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL) < 0)
		die("share the root's mounts");
}

static void set_up_kernel(void)
{
	struct rlimit files = { 1048576, 1048576 };
	struct ifreq request = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	request.ifr_flags = IFF_UP;
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		die("set lo up");
	close(fd);
	if (sethostname("testmachine", 11) < 0)
		die("set the host name");
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		die("set the limit of open files");
}

static pid_t start(char **argv, char **env, const char *cwd, int output)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid)
		return pid;
	setsid();
	int null = open("/dev/null", O_RDWR);

	if (null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0 || chdir(cwd) < 0) {
		dprintf(output, "test machine: enter %s: %s\n", cwd, strerror(errno));
		_exit(126);
	}
	if (null > 2)
		close(null);
	clearenv();
	for (; *env; env++)
		putenv(*env);
	execvp(argv[0], argv);
	dprintf(2, "test machine: run %s: %s\n", argv[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

int main(void)
{
	mount_at("proc", "proc", "/proc", 0, NULL);
	mount_at("sysfs", "sysfs", "/sys", 0, NULL);
	mount_at("devtmpfs", "dev", "/dev", 0, NULL);
	load_modules();
	status_port = open_port("status");
	int output = open_port("output");
	char **argv = words("/cfg/argv"), **env = words("/cfg/env"), *cwd = slurp("/cfg/cwd", NULL);

	if (!argv[0] || !cwd)
		die("find the command");
	bool units = has_units();

	make_root();
	if (units)
		make_units();
	enter_root();
	set_up_kernel();
	if (units)
		become_systemd();
	pid_t child = start(argv, env, cwd, output);
	int status;

	for (pid_t pid; (pid = wait(&status)) != child;)
		if (pid < 0 && errno != EINTR)
			die("wait for the command");
	dprintf(status_port, "exit %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	power_off();
}
