/* Operations of a plan that is carried out without root; included by init.c. */
#pragma once

/* In place of mknod(2): the host's node of that name, if it is that very device. */
static void op_bind_device(struct cursor *a)
{
	const char *path = s_(a);
	mode_t type = u_(a);
	dev_t dev = u_(a);
	struct stat st;
	int node = TRY(open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC));

	TRY(fstat(node, &st));
	if ((st.st_mode & S_IFMT) != type || st.st_rdev != dev)
		fail(ENODEV, "the host has something else of that name");
	int tree = clone_tree(node, false);
	attach(tree, TRY(mount_point(path, false, false)));
	close(node);
}
