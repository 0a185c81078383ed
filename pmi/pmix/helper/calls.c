// Upcalls: what libpmix asks its host for, on its own thread. Each is written to the launcher as it comes. Those
// that have an answer wait in a list until the main thread has it (pending.c).
#include "sfpmix.h"

#include <stdlib.h>

pmix_nspace_t own;

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
