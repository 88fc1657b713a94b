/* tmpcopyup: what a directory of the container holds, into a new tmpfs before it covers that directory.
 *
 * The content is hostile, and where containers share a root file system it may change meanwhile. Each entry is opened
 * as a descriptor that has not followed a link or left the mount, is looked at, and only then opened for reading, through
 * that descriptor. The tmpfs is attached nowhere yet: below it names are safe. Depth and number have a bound; bytes have
 * the tmpfs's size.
 */
#pragma once
#include <sys/sendfile.h>
#include <sys/xattr.h>

#define COPY_MAX_DEPTH 128
#define COPY_MAX_ENTRIES (1u << 18)

struct entry_ {
	uint64_t inode, offset;
	uint16_t bytes;
	uint8_t type;
	char name[];
};

static uint32_t copied;

static void copy_xattrs(int from, int to)
{
	static char names[65536], value[65536];
	ssize_t n = flistxattr(from, names, sizeof names);

	if (n < 0 && errno != ENOTSUP)
		fail(errno, "flistxattr");
	for (char *name = names; n > 0 && name < names + n; name += strlen(name) + 1) {
		ssize_t got = TRY(fgetxattr(from, name, value, sizeof value));
		TRY(fsetxattr(to, name, value, got, 0));
	}
}

/* Last what a change of the owner would take away: mode, capabilities, times. */
static void copy_attributes(int from, int to, const struct stat *st)
{
	TRY(fchown(to, st->st_uid, st->st_gid));
	TRY(fchmod(to, st->st_mode & 07777));
	copy_xattrs(from, to);
	TRY(futimens(to, (struct timespec[]){ st->st_atim, st->st_mtim }));
}

/* A file's data, with its holes as holes: a small file may say that it is very large. */
static void copy_data(int from, int to, off_t size)
{
	off_t at = 0, end;

	TRY(ftruncate(to, size));
	while (at < size && (at = lseek(from, at, SEEK_DATA)) >= 0) {
		end = TRY(lseek(from, at, SEEK_HOLE));
		TRY(lseek(from, at, SEEK_SET));
		TRY(lseek(to, at, SEEK_SET));
		while (at < end && at < size) {
			ssize_t n = TRY(sendfile(to, from, NULL, (end < size ? end : size) - at));
			if (n == 0)
				return; /* it has become shorter */
			at += n;
		}
	}
	if (at < 0 && errno != ENXIO)
		fail(errno, "lseek");
}

static void copy_tree(int from, int to, unsigned depth);

static void copy_entry(int from, int to, const char *name, unsigned depth)
{
	char text[PATH_MAX];
	struct stat st;
	int in, out, node = open_at(from, name, O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH | RESOLVE_NO_XDEV);

	if (node < 0 && errno == EXDEV) { /* something is mounted there: its place, not its content */
		TRY(fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW));
		if (S_ISDIR(st.st_mode))
			TRY(mkdirat(to, name, 0755));
		return;
	}
	if (node < 0 && errno == ENOENT)
		return; /* gone meanwhile */
	TRY(node);
	TRY(fstat(node, &st));
	switch (st.st_mode & S_IFMT) {
	case S_IFDIR:
		in = TRY(open(fd_path(node), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
		TRY(mkdirat(to, name, 0700));
		out = TRY(openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
		copy_tree(in, out, depth + 1);
		copy_attributes(in, out, &st);
		close(in);
		close(out);
		break;
	case S_IFREG:
		in = TRY(open(fd_path(node), O_RDONLY | O_CLOEXEC));
		out = TRY(openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
		copy_data(in, out, st.st_size);
		copy_attributes(in, out, &st);
		close(in);
		close(out);
		break;
	case S_IFLNK: {
		ssize_t n = TRY(readlinkat(node, "", text, sizeof text - 1));
		text[n] = '\0';
		TRY(symlinkat(text, to, name));
		break;
	}
	default: /* fifos, sockets, devices: the nodes; the container's cgroup says what may be opened */
		TRY(mknodat(to, name, st.st_mode, st.st_rdev));
		TRY(fchmodat(to, name, st.st_mode & 07777, 0));
	}
	if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode)) {
		TRY(fchownat(to, name, st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW));
		TRY(utimensat(to, name, (struct timespec[]){ st.st_atim, st.st_mtim }, AT_SYMLINK_NOFOLLOW));
	}
	close(node);
}

static void copy_tree(int from, int to, unsigned depth)
{
	char buffer[4096] __attribute__((aligned(8)));

	if (depth == COPY_MAX_DEPTH)
		fail(ELOOP, "tmpcopyup: directories more than 128 deep");
	for (long n; (n = TRY(syscall(SYS_getdents64, from, buffer, sizeof buffer))) > 0;)
		for (char *at = buffer; at < buffer + n;) {
			struct entry_ *e = (struct entry_ *)at;
			at += e->bytes;
			if (!strcmp(e->name, ".") || !strcmp(e->name, ".."))
				continue;
			if (++copied > COPY_MAX_ENTRIES)
				fail(E2BIG, "tmpcopyup: more than 262144 files");
			copy_entry(from, to, e->name, depth);
		}
}

static void op_copy_up(struct cursor *a)
{
	const char *source = s_(a), *target = s_(a);
	struct mount_attr_ attr = { .set = u_(a) };
	char **options = l_(a);
	struct stat st;
	int fs = TRY(syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC));
	bool mode = false, uid = false, gid = false;

	configure(fs, FSCONFIG_SET_STRING, "source", source);
	for (char **option = options; *option; option++) {
		mode |= !strncmp(*option, "mode=", 5);
		uid |= !strncmp(*option, "uid=", 4);
		gid |= !strncmp(*option, "gid=", 4);
	}
	configure_all(fs, options);
	configure(fs, FSCONFIG_CMD_CREATE, NULL, NULL);
	int tree = TRY(syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0));
	int to = TRY(openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	int at = TRY(mount_point(target, true, false));
	int from = TRY(open(fd_path(at), O_RDONLY | O_DIRECTORY | O_CLOEXEC));

	TRY(fstat(from, &st));
	copied = 0;
	copy_tree(from, to, 0);
	TRY(fchown(to, uid ? (uid_t)-1 : st.st_uid, gid ? (gid_t)-1 : st.st_gid));
	if (!mode)
		TRY(fchmod(to, st.st_mode & 07777));
	copy_xattrs(from, to);
	close(from);
	close(to);
	close(fs);
	set_attr(tree, &attr, false);
	attach_as(tree, at, target);
}
