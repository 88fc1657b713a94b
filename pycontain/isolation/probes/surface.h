/* What the probes of a surface share. */
#ifndef SURFACE_H
#define SURFACE_H

#include <stddef.h>

/* What a file holds, at most `limit` bytes of it, with a zero behind; NULL (errno) where it cannot be read. */
char *surface_read(const char *path, size_t limit);

#endif
