/* Paths below the container's root, which is hostile: resolved by the kernel in the root, used as descriptors. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int root = -1; /* the container's root directory, O_PATH */

static int open_at(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
	struct open_how how = { .flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve };
	long fd = -1;

	/* EAGAIN: a rename or mount raced with the walk and the kernel could not prove that it stayed inside. */
	for (int i = 0; i < 128; i++) {
		fd = syscall(SYS_openat2, dir, path, &how, sizeof how);
		if (fd >= 0 || errno != EAGAIN)
			break;
	}
	return fd;
}

static int in_root(const char *path, uint64_t flags)
{
	return open_at(root, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
}

/* path with its symbolic links followed by hand, in the root, also where they lead to what does not exist yet
 * (an image's /etc/resolv.conf often does). Only a suggestion where to make things: whatever is then opened is
 * opened with RESOLVE_IN_ROOT. The last component is followed or not. */
static bool follow(const char *path, bool last, char out[PATH_MAX])
{
	char todo[PATH_MAX], rest[PATH_MAX], link[PATH_MAX];
	size_t n = 0;

	if (snprintf(todo, sizeof todo, "%s", path) >= PATH_MAX)
		return errno = ENAMETOOLONG, false;
	out[0] = '\0';
	for (int links = 0;;) {
		char *at = todo + strspn(todo, "/");
		size_t len = strcspn(at, "/");
		if (len == 0)
			return n || (errno = EINVAL, false);
		if (n + 1 + len >= PATH_MAX || len > NAME_MAX)
			return errno = ENAMETOOLONG, false;
		if (len == 1 && at[0] == '.') {
			;
		} else if (len == 2 && at[0] == '.' && at[1] == '.') {
			while (n && out[--n] != '/')
				;
			out[n] = '\0';
		} else {
			size_t before = n;
			out[n] = '/';
			memcpy(out + n + 1, at, len);
			out[n += 1 + len] = '\0';
			int fd = last || at[len] ? in_root(out, O_PATH | O_NOFOLLOW) : -1;
			ssize_t got = fd < 0 ? -1 : readlinkat(fd, "", link, sizeof link - 1);
			if (fd >= 0)
				close(fd);
			if (got >= 0) {
				link[got] = '\0';
				if (++links > 40)
					return errno = ELOOP, false;
				if (snprintf(rest, sizeof rest, "%s/%s", link, at + len) >= PATH_MAX)
					return errno = ENAMETOOLONG, false;
				memcpy(todo, rest, sizeof todo);
				n = link[0] == '/' ? 0 : before;
				out[n] = '\0';
				continue;
			}
		}
		memmove(todo, at + len, strlen(at + len) + 1);
	}
}

/* parent_of where that directory is there already, as it mostly is (/dev, for each of its nodes): one call of the kernel
 * instead of eight. -1 where it is not, or where the last component is a link to be followed. */
static int present_parent_of(const char *path, bool last, char name[NAME_MAX + 1])
{
	char parent[PATH_MAX], link;
	const char *slash = strrchr(path, '/');

	if (!slash || snprintf(parent, sizeof parent, "%.*s/", (int)(slash - path), path) >= PATH_MAX ||
	    snprintf(name, NAME_MAX + 1, "%s", slash + 1) > NAME_MAX || name[strspn(name, ".")] == '\0')
		return -1;
	int dir = in_root(parent, O_PATH | O_DIRECTORY);
	if (dir >= 0 && last && readlinkat(dir, name, &link, 1) >= 0)
		return close(dir), -1;
	return dir;
}

/* The directory that will hold the last component of path, made if missing; *name is that component. */
static int parent_of(const char *path, bool last, char name[NAME_MAX + 1])
{
	char walk[PATH_MAX];
	int present = present_parent_of(path, last, name);

	if (present >= 0)
		return present;
	if (!follow(path, last, walk))
		return -1;
	int dir = in_root("/", O_PATH | O_DIRECTORY);
	for (char *at = walk + 1; dir >= 0;) {
		char *slash = strchr(at, '/');
		snprintf(name, NAME_MAX + 1, "%.*s", (int)strcspn(at, "/"), at);
		if (!slash)
			return dir;
		if (mkdirat(dir, name, 0755) < 0 && errno != EEXIST && errno != EROFS)
			return close(dir), -1;
		int below = open_at(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW, 0, RESOLVE_BENEATH);
		close(dir);
		dir = below;
		at = slash + 1;
	}
	return -1;
}

/* An O_PATH descriptor of a mount point, made if missing. proc and sysfs take no symbolic link on the way. */
static int mount_point(const char *path, bool directory, bool no_symlinks)
{
	char name[NAME_MAX + 1];
	uint64_t resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | (no_symlinks ? RESOLVE_NO_SYMLINKS : 0);
	int fd = open_at(root, path, O_PATH | (directory ? O_DIRECTORY : 0), 0, resolve);

	if (fd >= 0 || errno != ENOENT)
		return fd;
	int dir = parent_of(path, !no_symlinks, name);
	if (dir < 0)
		return -1;
	if (directory) {
		if (mkdirat(dir, name, 0755) < 0 && errno != EEXIST)
			return -1;
	} else {
		int made = open_at(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0644, RESOLVE_BENEATH);
		if (made < 0)
			return -1;
		close(made);
	}
	fd = open_at(dir, name, O_PATH | O_NOFOLLOW | (directory ? O_DIRECTORY : 0), 0, RESOLVE_BENEATH);
	close(dir);
	return fd;
}
