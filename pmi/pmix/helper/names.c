// What ranks publish, and look up. It crosses the launcher as libpmix packs it: only the ranks know what it means.
#include "sfpmix.h"

#include <stdlib.h>
#include <string.h>

// directive finds an attribute that says how, rather than what.
static const pmix_value_t *directive(const pmix_info_t info[], size_t n, const char *key)
{
	for (size_t i = 0; i < n; i++)
		if (PMIX_CHECK_KEY(&info[i], key))
			return &info[i].value;
	return NULL;
}

// is_directive tells PMIx's own attributes from what a process publishes.
static bool is_directive(const pmix_info_t *i)
{
	return strncmp(i->key, "pmix.", 5) == 0;
}

static uint32_t range_of(const pmix_info_t info[], size_t n)
{
	const pmix_value_t *v = directive(info, n, PMIX_RANGE);
	return v == NULL || v->type != PMIX_DATA_RANGE ? PMIX_RANGE_SESSION : v->data.range;
}

static uint32_t flag(const pmix_info_t info[], size_t n, const char *key)
{
	const pmix_value_t *v = directive(info, n, key);
	if (v == NULL)
		return 0;
	switch (v->type) {
	case PMIX_BOOL:
		return v->data.flag;
	case PMIX_INT:
		return v->data.integer >= 0; // PMIX_WAIT: how many to wait for, 0 for all
	default:
		return 1;
	}
}

// seconds is PMIX_TIMEOUT, 0 for none.
static uint32_t seconds(const pmix_info_t info[], size_t n)
{
	const pmix_value_t *v = directive(info, n, PMIX_TIMEOUT);
	return v == NULL || v->type != PMIX_INT || v->data.integer < 0 ? 0 : (uint32_t)v->data.integer;
}

// ask begins what a rank asks of the names in a range.
static struct out ask(int kind, struct operation op, const pmix_proc_t *p, const pmix_info_t info[], size_t n)
{
	struct out o = begin(kind);
	put_number(&o, expect(op));
	put_number(&o, p->rank);
	put_number(&o, range_of(info, n));
	return o;
}

// What is published crosses the launcher as libpmix packs it: only the ranks know what it means.
pmix_status_t publish(const pmix_proc_t *p, const pmix_info_t info[], size_t n, pmix_op_cbfunc_t cb, void *context)
{
	uint32_t count = 0, persistence = PMIX_PERSIST_SESSION;
	const pmix_value_t *v = directive(info, n, PMIX_PERSISTENCE);
	if (v != NULL && v->type == PMIX_PERSIST)
		persistence = v->data.persist;
	struct out values = begin(PUBLISH); // its bytes go behind those of o
	size_t from = values.length;
	for (size_t i = 0; i < n; i++) {
		if (is_directive(&info[i]))
			continue;
		pmix_data_buffer_t packed = {0};
		pmix_status_t rc = PMIx_Data_pack(NULL, &packed, (void *)&info[i].value, 1, PMIX_VALUE);
		if (rc != PMIX_SUCCESS) {
			PMIX_DATA_BUFFER_DESTRUCT(&packed);
			free(values.bytes);
			return rc;
		}
		put_string(&values, info[i].key);
		put_bytes(&values, packed.base_ptr, packed.bytes_used);
		PMIX_DATA_BUFFER_DESTRUCT(&packed);
		count++;
	}
	struct operation op = {.answer = DONE, .callback.done = cb, .context = context};
	struct out o = ask(PUBLISH, op, p, info, n);
	put_number(&o, persistence);
	put_number(&o, count);
	put_raw(&o, values.bytes + from, values.length - from);
	free(values.bytes);
	send_frame(&o);
	return PMIX_SUCCESS;
}

pmix_status_t lookup(const pmix_proc_t *p, char **keys, const pmix_info_t info[], size_t n,
		     pmix_lookup_cbfunc_t cb, void *context)
{
	struct operation op = {.answer = FOUND, .callback.found = cb, .context = context};
	struct out o = ask(LOOKUP, op, p, info, n);
	put_number(&o, flag(info, n, PMIX_WAIT));
	put_number(&o, seconds(info, n));
	put_strings(&o, keys);
	send_frame(&o);
	return PMIX_SUCCESS;
}

pmix_status_t unpublish(const pmix_proc_t *p, char **keys, const pmix_info_t info[], size_t n,
			pmix_op_cbfunc_t cb, void *context)
{
	struct operation op = {.answer = DONE, .callback.done = cb, .context = context};
	struct out o = ask(UNPUBLISH, op, p, info, n);
	put_strings(&o, keys);
	send_frame(&o);
	return PMIX_SUCCESS;
}

void settle_found(struct in *f, struct operation op, uint32_t outcome)
{
	uint32_t n = take_number(f);
	pmix_pdata_t *found = must(calloc(n + 1, sizeof *found));
	for (uint32_t i = 0; i < n; i++) {
		char *namespace = take_string(f);
		uint32_t rank = take_number(f);
		char *key = take_string(f);
		size_t length;
		char *packed = take_bytes(f, &length);
		PMIX_LOAD_PROCID(&found[i].proc, namespace, rank);
		PMIX_LOAD_KEY(found[i].key, key);
		pmix_data_buffer_t b = {0};
		PMIX_DATA_BUFFER_LOAD(&b, packed, length); // takes packed over
		int32_t one = 1;
		if (PMIx_Data_unpack(NULL, &b, &found[i].value, &one, PMIX_VALUE) != PMIX_SUCCESS)
			outcome = FAILED;
		PMIX_DATA_BUFFER_DESTRUCT(&b);
		free(namespace), free(key);
	}
	bool any = outcome == OK || outcome == PARTIAL;
	op.callback.found(status_of(outcome), any ? found : NULL, any ? n : 0, op.context);
	for (uint32_t i = 0; i < n; i++)
		PMIX_PDATA_DESTRUCT(&found[i]);
	free(found);
}
