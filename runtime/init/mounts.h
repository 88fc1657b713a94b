/* Operations on what the container sees as files: its root, mounts, devices, masks; included by init.c. */
#pragma once

/* From linux/mount.h, which does not live together with sys/mount.h in every libc. */
#define MS_BIND 4096
#define MS_MOVE 8192
#define MS_RDONLY 1
#define MS_NOSUID 2
#define MS_NODEV 4
#define MS_NOEXEC 8
#define MNT_DETACH 2
#define OPEN_TREE_CLONE 1
#define OPEN_TREE_CLOEXEC O_CLOEXEC
#define MOVE_MOUNT_F_EMPTY_PATH 4
#define MOVE_MOUNT_T_EMPTY_PATH 0x40
#define FSMOUNT_CLOEXEC 1
#define FSOPEN_CLOEXEC 1
#define FSCONFIG_CMD_CREATE 6
#define MOUNT_ATTR_RDONLY 1
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

struct mount_attr_ {
	uint64_t set, clear, propagation, userns_fd;
};

int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);

static const char *fd_path(int fd)
{
	static char path[32];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return path;
}

static void attach(int tree, int target)
{
	TRY(syscall(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
	close(tree);
	close(target);
}

static int clone_tree(int fd, bool recursive)
{
	return TRY(syscall(SYS_open_tree, fd, "",
			   AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0)));
}

static void set_attr(int fd, struct mount_attr_ *attr, bool recursive)
{
	TRY(syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), attr, sizeof *attr));
}

static void op_procfs(void)
{
	int fs = TRY(syscall(SYS_fsopen, "proc", FSOPEN_CLOEXEC));
	TRY(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	procfs = TRY(syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0));
	close(fs);
}

static void procfs_write(const char *path, const char *value)
{
	int fd = TRY(open_at(procfs, path, O_WRONLY, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV));
	TRY(write(fd, value, strlen(value)));
	close(fd);
}

static void op_sysctl(struct cursor *a)
{
	char path[PATH_MAX];
	const char *key = s_(a);
	snprintf(path, sizeof path, "sys/%s", key);
	procfs_write(path, s_(a));
}

static void op_root_bind(struct cursor *a)
{
	const char *path = s_(a);
	/* pivot_root wants a mount point; the bind also makes the flags of the root mount our own. */
	int dir = TRY(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
	attach(clone_tree(dir, true), dir);
	root = TRY(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

/* mount(2) takes one page of options, and a comma or colon in a path would end it: every directory is named by its
 * descriptor, relative to /proc/self/fd. 127 layers make 600 bytes, and the container learns no path of the host. */
static void op_root_overlay(struct cursor *a)
{
	const char *target = s_(a);
	char **lower = l_(a), options[4096] = "lowerdir=";
	const char *upper = s_(a), *work = s_(a), *extra = s_(a);
	const int how = O_PATH | O_DIRECTORY | O_CLOEXEC;
	int fds[512], count = 0, n = strlen(options);

	for (; lower[count]; count++) {
		if (count == 500)
			fail(E2BIG, "more than 500 layers");
		fds[count] = TRY(open(lower[count], how));
		n += snprintf(options + n, sizeof options - n, "%s%d", count ? ":" : "", fds[count]);
	}
	int up = fds[count++] = TRY(open(upper, how)), wk = fds[count++] = TRY(open(work, how));
	snprintf(options + n, sizeof options - n, ",upperdir=%d,workdir=%d%s", up, wk, extra);
	TRY(chdir("/proc/self/fd"));
	TRY(mount("overlay", target, "overlay", 0, options));
	TRY(chdir("/"));
	while (count)
		close(fds[--count]);
	root = TRY(open(target, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

static void op_mount(struct cursor *a)
{
	const char *source = s_(a), *target = s_(a), *type = s_(a);
	uint64_t flags = u_(a);
	const char *data = s_(a);
	int fd = TRY(mount_point(target, true, u_(a)));
	TRY(mount(source, fd_path(fd), type, flags, *data ? data : NULL));
	close(fd);
}

static void op_bind(struct cursor *a)
{
	const char *source = s_(a), *target = s_(a);
	bool recursive = u_(a);
	struct stat st;
	int tree = TRY(syscall(SYS_open_tree, AT_FDCWD, source,
			       OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0)));
	TRY(fstat(tree, &st));
	int at = TRY(mount_point(target, S_ISDIR(st.st_mode), false));
	attach(tree, at);
}

static void op_attr(struct cursor *a)
{
	const char *target = s_(a);
	struct mount_attr_ attr = { 0 };
	attr.set = u_(a);
	attr.clear = u_(a);
	attr.propagation = u_(a);
	int fd = TRY(in_root(target, O_PATH));
	set_attr(fd, &attr, u_(a));
	close(fd);
}

static void op_mkdir(struct cursor *a)
{
	char name[NAME_MAX + 1];
	const char *path = s_(a);
	mode_t mode = u_(a);
	uid_t uid = u_(a);
	gid_t gid = u_(a);

	int there = in_root(path, O_PATH | O_DIRECTORY);
	if (there >= 0) {
		close(there);
		return;
	}
	int dir = TRY(parent_of(path, true, name));
	TRY(mkdirat(dir, name, mode));
	int fd = TRY(open_at(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0, RESOLVE_BENEATH));
	TRY(fchown(fd, uid, gid));
	TRY(fchmod(fd, mode));
	close(fd);
	close(dir);
}

static void op_symlink(struct cursor *a)
{
	char name[NAME_MAX + 1];
	const char *target = s_(a);
	int dir = TRY(parent_of(s_(a), false, name));
	if (symlinkat(target, dir, name) < 0 && errno != EEXIST)
		fail(errno, "symlinkat");
	close(dir);
}

static void op_mknod(struct cursor *a)
{
	char name[NAME_MAX + 1];
	const char *path = s_(a);
	mode_t mode = u_(a);
	dev_t dev = u_(a);
	uid_t uid = u_(a);
	gid_t gid = u_(a);
	int dir = TRY(parent_of(path, false, name));

	if (mknodat(dir, name, mode, dev) < 0) {
		struct stat st;
		if (errno != EEXIST)
			fail(errno, "mknodat");
		/* There already: leave it only if it is that very device. */
		TRY(fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW));
		if ((st.st_mode & S_IFMT) != (mode & S_IFMT) || (!S_ISFIFO(mode) && st.st_rdev != dev)) {
			TRY(unlinkat(dir, name, 0));
			TRY(mknodat(dir, name, mode, dev));
		}
	}
	int fd = TRY(open_at(dir, name, O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH));
	/* Not fchmodat(2), which follows links; through our own descriptor there is none to follow. */
	TRY(chmod(fd_path(fd), mode & 07777));
	TRY(fchownat(fd, "", uid, gid, AT_EMPTY_PATH));
	close(fd);
	close(dir);
}

static void op_mask(struct cursor *a)
{
	struct stat st;
	int at = in_root(s_(a), O_PATH);

	if (at < 0 && (errno == ENOENT || errno == ENOTDIR))
		return;
	if (at < 0 || fstat(at, &st) < 0)
		fail(errno, "open");
	if (S_ISDIR(st.st_mode)) {
		TRY(mount("tmpfs", fd_path(at), "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0k,nr_inodes=1"));
		close(at);
		return;
	}
	/* The host's /dev/null, and only if it is the null device (CVE-2025-31133). */
	int null = TRY(open("/dev/null", O_PATH | O_NOFOLLOW | O_CLOEXEC));
	TRY(fstat(null, &st));
	if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3))
		fail(ENODEV, "/dev/null of the host is not the null device");
	attach(clone_tree(null, false), at);
	close(null);
}

static void op_readonly(struct cursor *a)
{
	struct mount_attr_ attr = { .set = MOUNT_ATTR_RDONLY };
	int at = in_root(s_(a), O_PATH);

	if (at < 0 && (errno == ENOENT || errno == ENOTDIR))
		return;
	if (at < 0)
		fail(errno, "open");
	int tree = clone_tree(at, true);
	set_attr(tree, &attr, true);
	attach(tree, at);
}

static void op_pivot(void)
{
	/* "." on ".": the old root ends up below the new one, at the same place, and is detached from there. */
	TRY(fchdir(root));
	TRY(syscall(SYS_pivot_root, ".", "."));
	TRY(umount2(".", MNT_DETACH));
	TRY(chdir("/"));
	close(root);
	root = TRY(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
}

static void op_move_root(void)
{
	TRY(fchdir(root));
	TRY(mount(".", "/", NULL, MS_MOVE, NULL));
	TRY(chroot("."));
	TRY(chdir("/"));
}

static void op_chroot(void)
{
	TRY(fchdir(root));
	TRY(chroot("."));
	TRY(chdir("/"));
}

/* In place, so that whoever has it mounted sees the new bytes. */
static void op_file(struct cursor *a)
{
	char name[NAME_MAX + 1];
	const char *path = s_(a);
	mode_t mode = u_(a);
	uint32_t n;
	const char *data = b_(a, &n);
	int dir = TRY(parent_of(path, false, name));
	int fd = TRY(open_at(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, mode, RESOLVE_BENEATH));

	while (n) {
		ssize_t written = TRY(write(fd, data, n));
		data += written;
		n -= written;
	}
	close(fd);
	close(dir);
}
