// What libpmix has to know of a namespace, and what its processes ask for before they have said anything.
#include "sfpmix.h"

#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// FOREIGN is the node number in a job of which no rank is here.
#define FOREIGN UINT32_MAX

static int removed(const char *path, const struct stat *s, int kind, struct FTW *at)
{
	(void)s, (void)kind, (void)at;
	remove(path); // what a rank still writes may stay: the directory is the user's own
	return 0;
}

void clean_up(void)
{
	if (session_dir[0] != 0)
		nftw(session_dir, removed, 16, FTW_DEPTH | FTW_PHYS);
}

// struct waiter lets the main thread wait for libpmix.
struct waiter {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool done;
	pmix_status_t status;
};

static void finished(pmix_status_t status, void *waiter)
{
	struct waiter *w = waiter;
	pthread_mutex_lock(&w->lock);
	w->status = status;
	w->done = true;
	pthread_cond_signal(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

// await is the outcome of what was asked for with finished as its callback.
static void await(pmix_status_t asked, struct waiter *w, const char *what)
{
	if (asked == PMIX_SUCCESS) {
		pthread_mutex_lock(&w->lock);
		while (!w->done)
			pthread_cond_wait(&w->changed, &w->lock);
		pthread_mutex_unlock(&w->lock);
		asked = w->status;
	}
	if (asked != PMIX_SUCCESS && asked != PMIX_OPERATION_SUCCEEDED)
		die("%s: %s", what, PMIx_Error_string(asked));
}

#define WAITER {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, PMIX_SUCCESS}

// struct infos is an array of pmix_info_t that grows.
struct infos {
	pmix_info_t *all;
	size_t count, room;
};

static void add(struct infos *l, const char *key, const void *value, pmix_data_type_t type)
{
	if (l->count == l->room) {
		l->room = 2 * l->room + 16;
		l->all = must(realloc(l->all, l->room * sizeof *l->all));
	}
	pmix_info_t *i = &l->all[l->count++];
	memset(i, 0, sizeof *i);
	PMIX_INFO_LOAD(i, key, value, type);
}

static void add_number(struct infos *l, const char *key, uint32_t n)
{
	add(l, key, &n, PMIX_UINT32);
}

static void add_rank(struct infos *l, const char *key, uint32_t n)
{
	pmix_rank_t rank = n;
	add(l, key, &rank, PMIX_PROC_RANK);
}

static void add_short(struct infos *l, const char *key, uint32_t n)
{
	uint16_t s = (uint16_t)n;
	add(l, key, &s, PMIX_UINT16);
}

// add_array moves inner into l.
static void add_array(struct infos *l, const char *key, struct infos *inner)
{
	pmix_data_array_t array = {.type = PMIX_INFO, .size = inner->count, .array = inner->all};
	add(l, key, &array, PMIX_DATA_ARRAY); // copies
	for (size_t i = 0; i < inner->count; i++)
		PMIX_INFO_DESTRUCT(&inner->all[i]);
	free(inner->all);
}

// struct text is a string that grows.
struct text {
	char *s;
	size_t length, room;
};

static void append(struct text *t, const char *separator, const char *s)
{
	size_t n = strlen(separator) + strlen(s);
	if (t->length + n + 1 > t->room) {
		t->room = 2 * (t->length + n + 1);
		t->s = must(realloc(t->s, t->room));
	}
	strcpy(t->s + t->length, separator);
	strcat(t->s + t->length, s);
	t->length += n;
}

static void append_number(struct text *t, const char *separator, uint32_t n)
{
	char s[16];
	snprintf(s, sizeof s, "%u", n);
	append(t, separator, s);
}

// struct node and struct app are of the job being registered.
struct node {
	char *name;
	uint32_t *ranks, count;
};

struct app {
	char *program, *dir;
	uint32_t ranks;
};

// subdir makes a directory of this process and returns its path.
static char *subdir(const char *name)
{
	char *path;
	if (asprintf(&path, "%s/%s", session_dir, name) < 0)
		die("out of memory");
	if (mkdir(path, 0700) != 0 && errno != EEXIST)
		die("make %s: %s", path, strerror(errno));
	return path;
}

// add_apps says which programs the job has.
static void add_apps(struct infos *job, const struct app *apps, uint32_t count)
{
	uint32_t first = 0;
	add_number(job, PMIX_JOB_NUM_APPS, count);
	for (uint32_t a = 0; a < count; a++) {
		struct infos l = {0};
		add_number(&l, PMIX_APPNUM, a);
		add_number(&l, PMIX_APP_SIZE, apps[a].ranks);
		add_rank(&l, PMIX_APPLDR, first);
		add(&l, PMIX_APP_ARGV, apps[a].program, PMIX_STRING);
		add(&l, PMIX_WDIR, apps[a].dir, PMIX_STRING);
		add_array(job, PMIX_APP_INFO_ARRAY, &l);
		first += apps[a].ranks;
	}
}

// add_ranks says of each rank where it is.
static void add_ranks(struct infos *job, const struct node *nodes, uint32_t count, uint32_t me, const struct app *apps)
{
	for (uint32_t n = 0; n < count; n++) {
		for (uint32_t i = 0; i < nodes[n].count; i++) {
			uint32_t rank = nodes[n].ranks[i], app = 0, first = 0;
			while (rank >= first + apps[app].ranks)
				first += apps[app++].ranks;
			struct infos l = {0};
			add_rank(&l, PMIX_RANK, rank);
			add_rank(&l, PMIX_GLOBAL_RANK, rank);
			add_rank(&l, PMIX_APP_RANK, rank - first);
			add_short(&l, PMIX_LOCAL_RANK, i);
			add_short(&l, PMIX_NODE_RANK, i);
			add_number(&l, PMIX_APPNUM, app);
			add_number(&l, PMIX_NODEID, n);
			add_number(&l, PMIX_REINCARNATION, 0);
			add(&l, PMIX_HOSTNAME, nodes[n].name, PMIX_STRING);
			if (n == me) {
				char name[16];
				snprintf(name, sizeof name, "%u", rank);
				char *dir = subdir(name);
				add(&l, PMIX_PROCDIR, dir, PMIX_STRING);
				free(dir);
			}
			add_array(job, PMIX_PROC_DATA, &l);
		}
	}
}

// announce registers the local ranks, and tells the launcher what each has to find in its environment.
static void announce(const struct node *me)
{
	struct out ready = begin(READY);
	put_number(&ready, me->count);
	for (uint32_t i = 0; i < me->count; i++) {
		pmix_proc_t p;
		PMIX_LOAD_PROCID(&p, own, me->ranks[i]);
		struct waiter w = WAITER;
		await(PMIx_server_register_client(&p, getuid(), getgid(), NULL, finished, &w), &w, "register a client");
		char **env = NULL;
		pmix_status_t rc = PMIx_server_setup_fork(&p, &env);
		if (rc != PMIX_SUCCESS)
			die("make the environment of rank %u: %s", p.rank, PMIx_Error_string(rc));
		uint32_t n = 0;
		while (env != NULL && env[n] != NULL)
			n++;
		put_number(&ready, p.rank);
		put_number(&ready, n);
		for (uint32_t e = 0; e < n; e++)
			put_string(&ready, env[e]);
		PMIX_ARGV_FREE(env);
	}
	send_frame(&ready);
}

void register_job(struct in *f)
{
	char *namespace = take_string(f);
	uint32_t me = take_number(f), universe = take_number(f);
	char *parent = take_string(f);
	uint32_t parent_rank = take_number(f), node_count = take_number(f), size = 0;
	struct node *nodes = must(calloc(node_count + 1, sizeof *nodes));
	struct text names = {0}, layout = {0}, local = {0};
	for (uint32_t n = 0; n < node_count; n++) {
		nodes[n].name = take_string(f);
		nodes[n].count = take_number(f);
		nodes[n].ranks = must(calloc(nodes[n].count + 1, sizeof(uint32_t)));
		append(&names, n > 0 ? "," : "", nodes[n].name);
		for (uint32_t i = 0; i < nodes[n].count; i++) {
			nodes[n].ranks[i] = take_number(f);
			append_number(&layout, i > 0 ? "," : n > 0 ? ";" : "", nodes[n].ranks[i]);
			if (n == me)
				append_number(&local, i > 0 ? "," : "", nodes[n].ranks[i]);
		}
		size += nodes[n].count;
	}
	uint32_t app_count = take_number(f), app_ranks = 0;
	struct app *apps = must(calloc(app_count + 1, sizeof *apps));
	for (uint32_t a = 0; a < app_count; a++) {
		apps[a].program = take_string(f);
		apps[a].dir = take_string(f);
		apps[a].ranks = take_number(f);
		app_ranks += apps[a].ranks;
	}
	if (strlen(namespace) > PMIX_MAX_NSLEN || app_ranks != size || (me != FOREIGN && me >= node_count))
		die("the launcher's description of %s makes no sense", namespace);

	struct infos job = {0};
	char *regex = NULL, *ppn = NULL;
	pmix_status_t rc = PMIx_generate_regex(names.s, &regex);
	if (rc == PMIX_SUCCESS)
		rc = PMIx_generate_ppn(layout.s, &ppn);
	if (rc != PMIX_SUCCESS)
		die("describe the nodes of %s: %s", namespace, PMIx_Error_string(rc));
	add(&job, PMIX_NODE_MAP, regex, PMIX_REGEX);
	add(&job, PMIX_PROC_MAP, ppn, PMIX_REGEX);
	add(&job, PMIX_JOBID, namespace, PMIX_STRING);
	add_number(&job, PMIX_JOB_SIZE, size);
	add_number(&job, PMIX_MAX_PROCS, size);
	add_number(&job, PMIX_UNIV_SIZE, universe);
	add_number(&job, PMIX_NUM_NODES, node_count);
	if (parent[0] != 0) {
		pmix_proc_t p;
		PMIX_LOAD_PROCID(&p, parent, parent_rank);
		add(&job, PMIX_PARENT_ID, &p, PMIX_PROC);
		bool yes = true;
		add(&job, PMIX_SPAWNED, &yes, PMIX_BOOL);
	}
	if (me != FOREIGN) {
		bool yes = true;
		char *dir = subdir("job");
		add(&job, PMIX_TMPDIR, session_dir, PMIX_STRING);
		add(&job, PMIX_NSDIR, dir, PMIX_STRING);
		add(&job, PMIX_TDIR_RMCLEAN, &yes, PMIX_BOOL);
		free(dir);
		add_number(&job, PMIX_LOCAL_SIZE, nodes[me].count);
		add_number(&job, PMIX_NODE_SIZE, nodes[me].count);
		add_number(&job, PMIX_NODEID, me);
		add(&job, PMIX_LOCAL_PEERS, local.s, PMIX_STRING);
		add_rank(&job, PMIX_LOCALLDR, nodes[me].ranks[0]);
	}
	add_apps(&job, apps, app_count);
	add_ranks(&job, nodes, node_count, me, apps);

	struct waiter w = WAITER;
	int here = me == FOREIGN ? 0 : (int)nodes[me].count;
	await(PMIx_server_register_nspace(namespace, here, job.all, job.count, finished, &w), &w, "register a namespace");
	if (me != FOREIGN) {
		PMIX_LOAD_NSPACE(own, namespace);
		announce(&nodes[me]);
	}

	for (size_t i = 0; i < job.count; i++)
		PMIX_INFO_DESTRUCT(&job.all[i]);
	for (uint32_t n = 0; n < node_count; n++)
		free(nodes[n].name), free(nodes[n].ranks);
	for (uint32_t a = 0; a < app_count; a++)
		free(apps[a].program), free(apps[a].dir);
	free(job.all), free(nodes), free(apps), free(regex), free(ppn);
	free(names.s), free(layout.s), free(local.s), free(namespace), free(parent);
}
