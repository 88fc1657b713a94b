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
#define FSPICK_CLOEXEC 1
#define FSPICK_EMPTY_PATH 8
#define FSCONFIG_SET_FLAG 0
#define FSCONFIG_SET_STRING 1
#define FSCONFIG_CMD_CREATE 6
#define FSCONFIG_CMD_RECONFIGURE 7
#define MOUNT_ATTR_RDONLY 1
#define MOUNT_ATTR_IDMAP 0x100000
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
/* How bind and tree treat their source, how mknod treats what is there, how tmpfs treats what it covers: as
 * plan/mounts.py has them. */
#define RECURSIVE 1u
#define NO_FOLLOW 2u
#define COPY_LINK 4u
#define EXACT 1u
#define TREES_MAX 128

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

/* The mount that was made last, and the path that it was made at: attributes that follow for that path are this mount's,
 * wherever the path leads by then. Another container with the same volume may exchange what is on the way, and what was
 * to be read-only would stay writable. */
static int last_mount = -1;
static const char *last_target;

static void forget_mount(void)
{
	if (last_mount >= 0)
		close(last_mount);
	last_mount = -1;
}

static void attach_as(int tree, int at, const char *target)
{
	forget_mount();
	last_mount = TRY(fcntl(tree, F_DUPFD_CLOEXEC, 3));
	last_target = target;
	attach(tree, at);
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
	forget_mount();
	TRY(mount(source, fd_path(fd), type, flags, *data ? data : NULL));
	close(fd);
}

static void configure(int fs, unsigned command, const char *key, const char *value)
{
	char log[120];

	if (syscall(SYS_fsconfig, fs, command, key, value, 0) == 0)
		return;
	int error = errno;
	/* What the file system has to say against it, behind a letter for the level and a blank. */
	ssize_t n = read(fs, log, sizeof log - 1);
	log[n < 0 ? 0 : n] = '\0';
	fail(error, n > 2 ? log + 2 : "fsconfig");
}

static void configure_all(int fs, char **options)
{
	for (; *options; options++) {
		char *value = strchr(*options, '=');
		if (value)
			*value++ = '\0'; /* the plan is ours alone: a private mapping */
		configure(fs, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, *options, value);
	}
}

static void op_remount(struct cursor *a)
{
	int at = TRY(in_root(s_(a), O_PATH));
	int fs = TRY(syscall(SYS_fspick, at, "", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH));
	configure_all(fs, l_(a));
	configure(fs, FSCONFIG_CMD_RECONFIGURE, NULL, NULL);
	close(fs);
	close(at);
}

static int source_tree(const char *source, uint64_t how)
{
	return TRY(syscall(SYS_open_tree, AT_FDCWD, source,
			   OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (how & RECURSIVE ? AT_RECURSIVE : 0) |
				   (how & NO_FOLLOW ? AT_SYMLINK_NOFOLLOW : 0)));
}

static void attach_at(int tree, const char *target)
{
	struct stat st;
	TRY(fstat(tree, &st));
	attach_as(tree, TRY(mount_point(target, S_ISDIR(st.st_mode), false)), target);
}

/* A link of the same text, where the source is a symbolic link. */
static bool link_copied(const char *source, const char *target)
{
	char name[NAME_MAX + 1], text[PATH_MAX], there[PATH_MAX];
	ssize_t n = readlinkat(AT_FDCWD, source, text, sizeof text - 1);

	if (n < 0)
		return false;
	text[n] = '\0';
	int dir = TRY(parent_of(target, false, name));
	if (symlinkat(text, dir, name) < 0) {
		if (errno != EEXIST)
			fail(errno, "symlinkat");
		ssize_t have = readlinkat(dir, name, there, sizeof there);
		if (have != n || memcmp(there, text, n))
			fail(EEXIST, "something else is there than the link to copy");
	}
	close(dir);
	return true;
}

static void op_bind(struct cursor *a)
{
	const char *source = s_(a), *target = s_(a);
	uint64_t how = u_(a);

	if (!(how & COPY_LINK) || !link_copied(source, target))
		attach_at(source_tree(source, how), target);
}

/* A user namespace with these maps, for the ids of a mount. It is a process's, so one lives as long as it takes. */
static int id_namespace(const char *uids, const char *gids)
{
	const char *names[] = { "uid_map", "gid_map" }, *maps[] = { uids, gids };
	struct clone_args args = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD };
	char path[64];
	int hold[2];

	TRY(pipe2(hold, O_CLOEXEC));
	pid_t pid = TRY(syscall(SYS_clone3, &args, sizeof args));
	if (pid == 0) {
		close(hold[1]);
		_exit(read(hold[0], path, 1) != 0); /* the end of its maker is its own */
	}
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof path, "/proc/%d/%s", pid, names[i]);
		int fd = TRY(open(path, O_WRONLY | O_CLOEXEC));
		if (write(fd, maps[i], strlen(maps[i])) < 0)
			fail(errno, names[i]);
		close(fd);
	}
	snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
	int fd = TRY(open(path, O_RDONLY | O_CLOEXEC));
	close(hold[0]);
	close(hold[1]);
	TRY(waitpid(pid, NULL, 0));
	return fd;
}

static int trees[TREES_MAX];

/* A source taken before the first process is cloned: while we are still root of the host, whose mounts only its root
 * may map ids of, and before all mounts are made slaves, so that one that is shared stays in its peer group. */
static void op_tree(struct cursor *a)
{
	uint64_t slot = u_(a);
	const char *source = s_(a);
	int tree = source_tree(source, u_(a));
	struct mount_attr_ spread = { .propagation = u_(a) }, map = { .set = MOUNT_ATTR_IDMAP };
	uint64_t mapped = u_(a), fd = u_(a); /* mapped: 0 no, 1 this mount, 2 those below it too */
	const char *uids = s_(a), *gids = s_(a);

	if (slot >= TREES_MAX)
		fail(E2BIG, "too many mounts");
	if (mapped) {
		map.userns_fd = fd == NO_FD ? (uint64_t)id_namespace(uids, gids) : fd;
		set_attr(tree, &map, mapped == 2);
		if (fd == NO_FD)
			close(map.userns_fd);
	}
	if (spread.propagation)
		set_attr(tree, &spread, true);
	trees[slot] = tree;
}

static void op_attr(struct cursor *a)
{
	const char *target = s_(a);
	struct mount_attr_ attr = { 0 };
	attr.set = u_(a);
	attr.clear = u_(a);
	attr.propagation = u_(a);
	bool last = last_mount >= 0 && !strcmp(target, last_target);
	int fd = last ? last_mount : TRY(in_root(target, O_PATH));
	set_attr(fd, &attr, u_(a));
	if (!last)
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

static bool same_device(const struct stat *st, mode_t mode, dev_t dev)
{
	return (st->st_mode & S_IFMT) == (mode & S_IFMT) && (S_ISFIFO(mode) || st->st_rdev == dev);
}

/* Where mknod(2) is not allowed: the host's node, if it is the device that is meant, with the mode that is meant. */
static void op_device(struct cursor *a)
{
	const char *path = s_(a);
	mode_t mode = u_(a);
	dev_t dev = u_(a);
	bool any_mode = u_(a);
	struct stat st;
	int tree = source_tree(path, 0);

	TRY(fstat(tree, &st));
	if (!same_device(&st, mode, dev))
		fail(ENODEV, "the host has another device there");
	if (!any_mode && (st.st_mode & 07777) != (mode & 07777))
		fail(EPERM, "the host's node has another mode");
	attach_at(tree, path);
}

static void op_mknod(struct cursor *a)
{
	char name[NAME_MAX + 1];
	const char *path = s_(a);
	mode_t mode = u_(a);
	dev_t dev = u_(a);
	uid_t uid = u_(a);
	gid_t gid = u_(a);
	uint64_t how = u_(a);
	int dir = TRY(parent_of(path, false, name));

	if (mknodat(dir, name, mode, dev) < 0) {
		struct stat st;
		if (errno != EEXIST)
			fail(errno, "mknodat");
		/* There already: leave it only if it is that very device. */
		TRY(fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW));
		if (!same_device(&st, mode, dev)) {
			if (how & EXACT)
				fail(EEXIST, "something else is there than this device");
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
	forget_mount();
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
	forget_mount();
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
