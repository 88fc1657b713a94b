/*
 * Preloaded into crun on cgroup v2. To load the device rules' program it raises RLIMIT_MEMLOCK, which fails where root
 * lacks CAP_SYS_RESOURCE, and which Linux has not asked for since 5.11 (the memory is the cgroup's now): answering
 * the call lets it run the same bundle as the others. The alternative, a bundle without device rules, is less work for
 * crun alone: the others deny all devices that no rule allows, and load a program all the same.
 */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *limit)
{
	return resource == RLIMIT_MEMLOCK ? 0 : (int)syscall(SYS_prlimit64, 0, resource, limit, NULL);
}

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
	struct rlimit64 same = {limit->rlim_cur, limit->rlim_max};

	return setrlimit64(resource, &same);
}
