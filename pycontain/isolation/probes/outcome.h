/* What the attacks share. Each runs in a child of its own and says once what it reached, or what refused it.
 *
 * Decoys carry a text that begins with "decoy:". To have read such a text is the proof of an attack; who judges knows
 * the whole text, the attack does not. Where nothing can be read (a clock, a kernel's door) the proof is that the
 * kernel came past its check of rights; no attack goes further than that.
 */
#ifndef OUTCOME_H
#define OUTCOME_H

#include <stddef.h>
#include <sys/types.h>

struct attack {
	const char *name;
	void (*run)(char **args);
};

#define ATTACK(name_)                                                                            \
	static void attack_##name_(char **args);                                                 \
	__attribute__((used, section("attacks"), aligned(8)))                                    \
	static const struct attack registered_##name_ = { #name_, attack_##name_ };              \
	static void attack_##name_(__attribute__((unused)) char **args)

/* The first of these ends the attack: nothing after it counts. */
int saw(const void *bytes, size_t size, const char *how);      /* 1 where a decoy's text is in there */
int read_decoy(int fd, const char *how);                       /* reads and closes; -1 is allowed: refused */
void reached(const char *how);                                 /* the kernel came past its check */
/* Not an end: what the kernel said, errno. The first one is told unless something is reached later. */
void refused(const char *call);
int done(void);

/* The line by which the judge knows which kernel this was on, and in which process namespace. */
void json_self(void);

/* From any directory to the root directory, and then to a path. */
#define UP "../../../../../../../../../../../.."
/* Places where a careless level has the host's root directory: each is put before a decoy's path. */
extern const char *const roots[];
/* Directories where a file can perhaps be made; NULL at the end. The first is on a tmpfs of this child's own: where that
 * can be had, nothing is made on the host. */
const char *const *places(void);

/* Every process that is seen, through procfs at ``proc``; ends early when something was reached. */
void each_process(const char *proc, void (*visit)(const char *proc, int pid, char **args), char **args);
/* A procfs: /proc, or one mounted in a mount namespace of this child's own. NULL: refused. */
const char *procfs(void);
/* A new user namespace in which the caller is root, with these others. 0, or -1 and refused. */
int new_user_namespace(int others);
/* A mount namespace of this child's own, so that nothing is changed for others. 0, or -1 and refused. */
int own_mounts(void);
/* A directory, existing or made, to mount something on in an own mount namespace. */
const char *mount_point(void);
/* Whether user ids are the first user namespace's: the kernel wants some rights there. */
int in_first_user_namespace(void);

#endif
