// What waits for the launcher's answer. An upcall puts it here on libpmix's thread; the main thread takes it out, and has libpmix
// go on with it.
#include "sfpmix.h"

#include <pthread.h>
#include <stdlib.h>

static pthread_mutex_t waiting_lock = PTHREAD_MUTEX_INITIALIZER;
static struct operation *waiting;

uint32_t expect(struct operation o)
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

pmix_status_t status_of(uint32_t outcome)
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
