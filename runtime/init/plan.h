/* The decoder of plans: every length is checked before it is believed (compare CVE-2021-43784). */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "protocol.h"

enum {
#define OP(code, name, sig) OP_##name = code,
	OPERATIONS(OP)
#undef OP
};

enum {
#define MSG(code, name) MSG_##name = code,
	MESSAGES(MSG)
#undef MSG
};

struct cursor {
	const char *at, *end;
};

static inline bool take(struct cursor *c, void *to, size_t n)
{
	if ((size_t)(c->end - c->at) < n)
		return false;
	memcpy(to, c->at, n);
	c->at += n;
	return true;
}

static inline bool take_bytes(struct cursor *c, const char **to, uint32_t *n)
{
	if (!take(c, n, 4) || (size_t)(c->end - c->at) < *n)
		return false;
	*to = c->at;
	c->at += *n;
	return true;
}

static inline bool take_string(struct cursor *c, const char **to)
{
	uint32_t n;

	if (!take_bytes(c, to, &n) || c->at == c->end || *c->at != '\0' || memchr(*to, '\0', n))
		return false;
	c->at++;
	return true;
}

static inline const char *signature(uint32_t code)
{
	switch (code) {
#define OP(code, name, sig) case code: return sig;
	OPERATIONS(OP)
#undef OP
	}
	return NULL;
}

/* One operation off the plan: its code, and a cursor over its arguments. */
static inline bool next_op(struct cursor *plan, uint32_t *code, struct cursor *args)
{
	uint32_t n;

	if (!take(plan, code, 4) || !take_bytes(plan, &args->at, &n))
		return false;
	args->end = args->at + n;
	return true;
}

/* Does the whole plan decode, to the last byte? Nothing is carried out before it does. */
static inline bool plan_valid(const char *bytes, size_t size, struct cursor *ops, uint32_t *count)
{
	struct cursor c = { bytes, bytes + size };
	char magic[4];
	uint32_t version, total;

	if (!take(&c, magic, 4) || memcmp(magic, PLAN_MAGIC, 4) || !take(&c, &version, 4) || version != PLAN_VERSION ||
	    !take(&c, count, 4) || !take(&c, &total, 4) || total != size || size > PLAN_MAX_BYTES || *count > PLAN_MAX_ITEMS)
		return false;
	*ops = c;
	for (uint32_t i = 0; i < *count; i++) {
		struct cursor a;
		uint32_t code, n;
		const char *s;
		uint64_t u;

		if (!next_op(&c, &code, &a))
			return false;
		const char *sig = signature(code);
		if (!sig)
			return false;
		for (; *sig; sig++) {
			bool ok = false;
			switch (*sig) {
			case 'u': ok = take(&a, &u, 8); break;
			case 's': ok = take_string(&a, &s); break;
			case 'b': ok = take_bytes(&a, &s, &n); break;
			case 'l':
				ok = take(&a, &n, 4) && n <= PLAN_MAX_ITEMS;
				for (uint32_t k = 0; ok && k < n; k++)
					ok = take_string(&a, &s);
				break;
			}
			if (!ok)
				return false;
		}
		if (a.at != a.end)
			return false;
	}
	return c.at == c.end;
}
