// New ranks, and the groups that old and new ones form.
#include "sfpmix.h"

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

pmix_status_t spawn(const pmix_proc_t *p, const pmix_info_t job[], size_t njob, const pmix_app_t apps[], size_t n,
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
		put_strings(&o, apps[i].argv);
		put_strings(&o, apps[i].env);
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

pmix_status_t connect_procs(const pmix_proc_t procs[], size_t n, const pmix_info_t info[], size_t ninfo,
				   pmix_op_cbfunc_t cb, void *context)
{
	(void)info, (void)ninfo;
	return meet(CONNECT, procs, n, cb, context);
}

pmix_status_t disconnect_procs(const pmix_proc_t procs[], size_t n, const pmix_info_t info[], size_t ninfo,
				      pmix_op_cbfunc_t cb, void *context)
{
	(void)info, (void)ninfo;
	return meet(DISCONNECT, procs, n, cb, context);
}
