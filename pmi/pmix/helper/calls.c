// Upcalls: what libpmix asks its host for, on its own thread. Each is written to the launcher as it comes. Those
// that have an answer wait in a list until the main thread has it.
#include "sfpmix.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

pmix_nspace_t own;

// struct operation waits for the launcher's answer. The answer's kind says which callback it is for.
struct operation {
	uint32_t id;
	int answer; // DONE, DATA, FOUND or SPAWNED
	union {
		pmix_op_cbfunc_t done;
		pmix_modex_cbfunc_t data;
		pmix_lookup_cbfunc_t found;
		pmix_spawn_cbfunc_t spawned;
	} callback;
	void *context;
	struct operation *next;
};

static pthread_mutex_t waiting_lock = PTHREAD_MUTEX_INITIALIZER;
static struct operation *waiting;

// expect makes an operation and returns its number. It must come before its frame is written.
static uint32_t expect(struct operation o)
{
	static uint32_t last; // under the lock
	struct operation *p = must(malloc(sizeof *p));
	pthread_mutex_lock(&waiting_lock);
	o.id = ++last;
	o.next = waiting;
	*p = o;
	waiting = p;
	pthread_mutex_unlock(&waiting_lock);
	return o.id;
}

static struct operation claim(uint32_t id, int answer)
{
	struct operation o = {0};
	pthread_mutex_lock(&waiting_lock);
	for (struct operation **at = &waiting; *at != NULL; at = &(*at)->next) {
		if ((*at)->id != id || (*at)->answer != answer)
			continue;
		struct operation *p = *at;
		*at = p->next;
		o = *p;
		free(p);
		break;
	}
	pthread_mutex_unlock(&waiting_lock);
	if (o.id == 0)
		die("an answer of kind %d to operation %u, which does not wait for one", answer, id);
	return o;
}

static pmix_status_t status_of(uint32_t outcome)
{
	switch (outcome) {
	case OK:
		return PMIX_SUCCESS;
	case NOT_FOUND:
		return PMIX_ERR_NOT_FOUND;
	case TIMED_OUT:
		return PMIX_ERR_TIMEOUT;
	case NOT_SUPPORTED:
		return PMIX_ERR_NOT_SUPPORTED;
	case LOST:
		return PMIX_ERR_LOST_CONNECTION;
	case DUPLICATE:
		return PMIX_ERR_DUPLICATE_KEY;
	case PARTIAL:
		return PMIX_ERR_PARTIAL_SUCCESS;
	}
	return PMIX_ERROR;
}

static uint32_t outcome_of(pmix_status_t status)
{
	switch (status) {
	case PMIX_SUCCESS:
		return OK;
	case PMIX_ERR_NOT_FOUND:
		return NOT_FOUND;
	case PMIX_ERR_TIMEOUT:
		return TIMED_OUT;
	case PMIX_ERR_NOT_SUPPORTED:
		return NOT_SUPPORTED;
	}
	return FAILED;
}

static void put_procs(struct out *o, const pmix_proc_t procs[], size_t n)
{
	put_number(o, (uint32_t)n);
	for (size_t i = 0; i < n; i++)
		put_proc(o, &procs[i]);
}

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

static pmix_status_t connected(const pmix_proc_t *p, void *object, pmix_op_cbfunc_t cb, void *context)
{
	(void)object, (void)cb, (void)context;
	struct out o = begin(CONNECTED);
	put_number(&o, p->rank);
	send_frame(&o);
	return PMIX_OPERATION_SUCCEEDED;
}

// The rank goes on, and perhaps exits, when this has returned: the launcher has been told by then.
static pmix_status_t finalized(const pmix_proc_t *p, void *object, pmix_op_cbfunc_t cb, void *context)
{
	(void)object, (void)cb, (void)context;
	struct out o = begin(FINALIZED);
	put_number(&o, p->rank);
	send_frame(&o);
	return PMIX_OPERATION_SUCCEEDED;
}

// An abort has no answer: the rank waits to be killed, as the launcher does with all of them.
static pmix_status_t aborted(const pmix_proc_t *p, void *object, int status, const char message[],
			     pmix_proc_t procs[], size_t n, pmix_op_cbfunc_t cb, void *context)
{
	(void)object, (void)procs, (void)n, (void)cb, (void)context;
	struct out o = begin(ABORT);
	put_number(&o, p->rank);
	put_number(&o, (uint32_t)status);
	put_string(&o, message);
	send_frame(&o);
	return PMIX_SUCCESS;
}

static pmix_status_t fence(const pmix_proc_t procs[], size_t n, const pmix_info_t info[], size_t ninfo,
			   char *data, size_t ndata, pmix_modex_cbfunc_t cb, void *context)
{
	(void)info, (void)ninfo;
	struct operation op = {.answer = DATA, .callback.data = cb, .context = context};
	struct out o = begin(FENCE);
	put_number(&o, expect(op));
	put_procs(&o, procs, n);
	put_bytes(&o, data, data == NULL ? 0 : ndata);
	send_frame(&o);
	return PMIX_SUCCESS;
}

static pmix_status_t direct_modex(const pmix_proc_t *p, const pmix_info_t info[], size_t n,
				  pmix_modex_cbfunc_t cb, void *context)
{
	(void)info, (void)n;
	struct operation op = {.answer = DATA, .callback.data = cb, .context = context};
	struct out o = begin(DMODEX);
	put_number(&o, expect(op));
	put_proc(&o, p);
	send_frame(&o);
	return PMIX_SUCCESS;
}

// What is published crosses the launcher as libpmix packs it: only the ranks know what it means.
static pmix_status_t publish(const pmix_proc_t *p, const pmix_info_t info[], size_t n, pmix_op_cbfunc_t cb, void *context)
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
	struct out o = begin(PUBLISH);
	put_number(&o, expect(op));
	put_number(&o, p->rank);
	put_number(&o, range_of(info, n));
	put_number(&o, persistence);
	put_number(&o, count);
	put_raw(&o, values.bytes + from, values.length - from);
	free(values.bytes);
	send_frame(&o);
	return PMIX_SUCCESS;
}

static void put_keys(struct out *o, char **keys)
{
	uint32_t n = 0;
	while (keys != NULL && keys[n] != NULL)
		n++;
	put_number(o, n);
	for (uint32_t i = 0; i < n; i++)
		put_string(o, keys[i]);
}

static pmix_status_t lookup(const pmix_proc_t *p, char **keys, const pmix_info_t info[], size_t n,
			    pmix_lookup_cbfunc_t cb, void *context)
{
	struct operation op = {.answer = FOUND, .callback.found = cb, .context = context};
	struct out o = begin(LOOKUP);
	put_number(&o, expect(op));
	put_number(&o, p->rank);
	put_number(&o, range_of(info, n));
	put_number(&o, flag(info, n, PMIX_WAIT));
	put_number(&o, seconds(info, n));
	put_keys(&o, keys);
	send_frame(&o);
	return PMIX_SUCCESS;
}

static pmix_status_t unpublish(const pmix_proc_t *p, char **keys, const pmix_info_t info[], size_t n,
			       pmix_op_cbfunc_t cb, void *context)
{
	struct operation op = {.answer = DONE, .callback.done = cb, .context = context};
	struct out o = begin(UNPUBLISH);
	put_number(&o, expect(op));
	put_number(&o, p->rank);
	put_number(&o, range_of(info, n));
	put_keys(&o, keys);
	send_frame(&o);
	return PMIX_SUCCESS;
}

// put_infos writes what can be said in words.
static void put_infos(struct out *o, const pmix_info_t info[], size_t n)
{
	uint32_t count = 0;
	for (size_t i = 0; i < n; i++)
		count += info[i].value.type == PMIX_STRING || info[i].value.type == PMIX_BOOL;
	put_number(o, count);
	for (size_t i = 0; i < n; i++) {
		const pmix_value_t *v = &info[i].value;
		if (v->type != PMIX_STRING && v->type != PMIX_BOOL)
			continue;
		put_string(o, info[i].key);
		put_string(o, v->type == PMIX_STRING ? v->data.string : v->data.flag ? "true" : "false");
	}
}

static pmix_status_t spawn(const pmix_proc_t *p, const pmix_info_t job[], size_t njob, const pmix_app_t apps[], size_t n,
			   pmix_spawn_cbfunc_t cb, void *context)
{
	struct operation op = {.answer = SPAWNED, .callback.spawned = cb, .context = context};
	struct out o = begin(SPAWN);
	put_number(&o, expect(op));
	put_number(&o, p->rank);
	put_infos(&o, job, njob);
	put_number(&o, (uint32_t)n);
	for (size_t i = 0; i < n; i++) {
		put_string(&o, apps[i].cmd);
		put_keys(&o, apps[i].argv);
		put_keys(&o, apps[i].env);
		put_string(&o, apps[i].cwd);
		put_number(&o, (uint32_t)apps[i].maxprocs);
		put_infos(&o, apps[i].info, apps[i].ninfo);
	}
	send_frame(&o);
	return PMIX_SUCCESS;
}

// meet is what connect and disconnect have in common: all of procs take part.
static pmix_status_t meet(int kind, const pmix_proc_t procs[], size_t n, pmix_op_cbfunc_t cb, void *context)
{
	struct operation op = {.answer = DONE, .callback.done = cb, .context = context};
	struct out o = begin(kind);
	put_number(&o, expect(op));
	put_procs(&o, procs, n);
	send_frame(&o);
	return PMIX_SUCCESS;
}

static pmix_status_t connect_procs(const pmix_proc_t procs[], size_t n, const pmix_info_t info[], size_t ninfo,
				   pmix_op_cbfunc_t cb, void *context)
{
	(void)info, (void)ninfo;
	return meet(CONNECT, procs, n, cb, context);
}

static pmix_status_t disconnect_procs(const pmix_proc_t procs[], size_t n, const pmix_info_t info[], size_t ninfo,
				      pmix_op_cbfunc_t cb, void *context)
{
	(void)info, (void)ninfo;
	return meet(DISCONNECT, procs, n, cb, context);
}

// Events of ranks stay on their node: what ends a job, the launcher sees by itself.
static pmix_status_t listen_events(pmix_status_t *codes, size_t n, const pmix_info_t info[], size_t ninfo,
				   pmix_op_cbfunc_t cb, void *context)
{
	(void)codes, (void)n, (void)info, (void)ninfo, (void)cb, (void)context;
	return PMIX_OPERATION_SUCCEEDED;
}

static pmix_status_t ignore_events(pmix_status_t *codes, size_t n, pmix_op_cbfunc_t cb, void *context)
{
	(void)codes, (void)n, (void)cb, (void)context;
	return PMIX_OPERATION_SUCCEEDED;
}

// Open MPI has its help texts shown by who launched it, and waits until they are.
static void log_text(const pmix_proc_t *client, const pmix_info_t data[], size_t n, const pmix_info_t how[], size_t nhow,
		     pmix_op_cbfunc_t cb, void *context)
{
	(void)how, (void)nhow;
	struct operation op = {.answer = DONE, .callback.done = cb, .context = context};
	struct out o = begin(MESSAGE);
	put_number(&o, expect(op));
	put_number(&o, client->rank);
	put_number(&o, (uint32_t)n);
	for (size_t i = 0; i < n; i++) {
		const pmix_value_t *v = &data[i].value;
		put_string(&o, data[i].key);
		if (v->type == PMIX_BYTE_OBJECT)
			put_bytes(&o, v->data.bo.bytes, v->data.bo.size);
		else
			put_string(&o, v->type == PMIX_STRING ? v->data.string : NULL);
	}
	send_frame(&o);
}

pmix_server_module_t upcalls = {
	.client_connected = connected,
	.client_finalized = finalized,
	.abort = aborted,
	.fence_nb = fence,
	.direct_modex = direct_modex,
	.publish = publish,
	.lookup = lookup,
	.unpublish = unpublish,
	.spawn = spawn,
	.connect = connect_procs,
	.disconnect = disconnect_procs,
	.register_events = listen_events,
	.deregister_events = ignore_events,
	.log = log_text,
};

static void settle_found(struct in *f, struct operation op, uint32_t outcome)
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

void settle(struct in *f)
{
	struct operation op = claim(take_number(f), f->kind);
	uint32_t outcome = take_number(f);
	switch (f->kind) {
	case DONE:
		if (op.callback.done != NULL)
			op.callback.done(status_of(outcome), op.context);
		break;
	case DATA: {
		size_t n;
		char *data = take_bytes(f, &n);
		op.callback.data(status_of(outcome), data, n, op.context, free, data);
		break;
	}
	case FOUND:
		settle_found(f, op, outcome);
		break;
	case SPAWNED: {
		char *name = take_string(f);
		pmix_nspace_t namespace;
		PMIX_LOAD_NSPACE(namespace, name);
		op.callback.spawned(status_of(outcome), namespace, op.context);
		free(name);
	}
	}
}

static void fetched(pmix_status_t status, char *data, size_t n, void *id)
{
	struct out o = begin(MODEX);
	put_number(&o, (uint32_t)(uintptr_t)id);
	put_number(&o, outcome_of(status));
	put_bytes(&o, data, data == NULL ? 0 : n);
	send_frame(&o);
}

void fetch(struct in *f)
{
	uintptr_t id = take_number(f);
	pmix_proc_t p;
	PMIX_LOAD_PROCID(&p, own, take_number(f));
	pmix_status_t rc = PMIx_server_dmodex_request(&p, fetched, (void *)id);
	if (rc != PMIX_SUCCESS)
		fetched(rc, NULL, 0, (void *)id);
}
