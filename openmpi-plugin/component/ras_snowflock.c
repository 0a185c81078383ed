/*
 * mca_ras_snowflock allocates hosts by forking: it has `mpirun-sf ompi allocate` make clones, takes them for hosts,
 * and lets them join when the launcher ends. What that command says is described where it is implemented, in the
 * comment of mpirun-sf/openmpi.
 *
 *  1. query: only if mca_ess_snowflock has decided so; see snowflock.h.
 *  2. allocate starts the command and says that the allocation is pending: forks take seconds, and meanwhile the
 *     launcher hears interrupts and time limits.
 *  3. hear, an event of the launcher's loop, takes what the command says, and at `ready` goes on with the job.
 *  4. It goes on hearing: that a clone was lost, or that the command has ended.
 *  5. finalize waits for the remote shell agents, closes the command's stdin, and waits for it. The kernel closes it, too, if the launcher is killed.
 */
#define _GNU_SOURCE
#include "orte_config.h"

#include "allocation.h"
#include "snowflock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "opal/mca/base/base.h"
#include "opal/mca/base/mca_base_var.h"
#include "opal/mca/event/event.h"
#include "opal/mca/hwloc/base/base.h"
#include "opal/mca/if/if.h"
#include "opal/util/argv.h"
#include "opal/util/opal_environ.h"
#include "opal/util/output.h"
#include "orte/constants.h"
#include "orte/mca/errmgr/errmgr.h"
#include "orte/mca/ras/base/base.h"
#include "orte/mca/ras/base/ras_private.h"
#include "orte/mca/ras/ras.h"
#include "orte/mca/rmaps/rmaps_types.h"
#include "orte/mca/state/state.h"
#include "orte/runtime/orte_globals.h"
#include "orte/util/attr.h"
#include "orte/util/proc_info.h"
#include "orte/util/show_help.h"

/* How long agents may take to end when their daemons do, and how often to look, in milliseconds. */
#define AGENT_LIMIT 5000
#define AGENT_INTERVAL 5

static struct {
    struct snowflock_child child;
    opal_event_t heard;
    bool hearing; /* heard is in the loop */
    bool failed;  /* and has been said */
    bool ready;
    orte_job_t *job; /* whose allocation is pending */
    opal_list_t nodes;
} clones;

static void fail(const char *topic, const char *text)
{
    if (!clones.failed) {
        orte_show_help(SNOWFLOCK_HELP, topic, true, text);
    }
    clones.failed = true;
}

static void stop_hearing(void)
{
    if (clones.hearing) {
        opal_event_del(&clones.heard);
    }
    clones.hearing = false;
}

/* How many ranks a job has, and how many of them in each clone, 0 for whatever mpirun-sf does. */
static int ranks(orte_job_t *job, int *each)
{
    int n = 0;

    for (int i = 0; i < job->apps->size; i++) {
        orte_app_context_t *app = opal_pointer_array_get_item(job->apps, i);
        n += NULL == app ? 0 : app->num_procs;
    }
    if (n <= 0) {
        /* What Open MPI does without -np and without hosts: a rank for each core of this machine. */
        n = (int)opal_hwloc_base_get_nbobjs_by_type(opal_hwloc_topology, HWLOC_OBJ_CORE, 0, OPAL_HWLOC_AVAILABLE);
    }
    *each = 0;
    if (NULL != job->map && NULL != job->map->ppr && NULL != strstr(job->map->ppr, ":node")) {
        *each = atoi(job->map->ppr);
    }
    n = n < snowflock_parameters.slots ? snowflock_parameters.slots : n;
    return n < 1 ? 1 : n;
}

/* Whether the job is one to make clones for. If it is a mistake, that is said, and a status of Open MPI's. */
static int check(orte_job_t *job)
{
    int without = 0;

    if (orte_do_not_launch) {
        return ORTE_ERR_TAKE_NEXT_OPTION;
    }
    for (int i = 0; i < job->apps->size; i++) {
        orte_app_context_t *app = opal_pointer_array_get_item(job->apps, i);
        if (NULL == app) {
            continue;
        }
        if (NULL == app->app || NULL == app->argv) {
            return ORTE_ERR_TAKE_NEXT_OPTION;
        }
        without += app->num_procs <= 0;
        if (orte_get_attribute(&app->attributes, ORTE_APP_DASH_HOST, NULL, OPAL_STRING) ||
            orte_get_attribute(&app->attributes, ORTE_APP_HOSTFILE, NULL, OPAL_STRING)) {
            fail("hosts", app->app);
            return ORTE_ERR_SILENT;
        }
    }
    if (without > 0 && job->num_apps > 1) {
        fail("no -np", "");
        return ORTE_ERR_SILENT;
    }
    return ORTE_SUCCESS;
}

/* The command and its arguments. NULL if there is none. */
static char **command(orte_job_t *job, orte_app_context_t *app)
{
    int each, n = ranks(job, &each);
    char **argv = NULL, number[16], *path = snowflock_command();
    const char *options = snowflock_parameters.options;

    if (NULL == path) {
        return NULL;
    }
    opal_argv_append_nosize(&argv, path);
    free(path);
    opal_argv_append_nosize(&argv, "ompi");
    opal_argv_append_nosize(&argv, "allocate");
    opal_argv_append_nosize(&argv, "-np");
    snprintf(number, sizeof number, "%d", n);
    opal_argv_append_nosize(&argv, number);
    if (each > 0) {
        opal_argv_append_nosize(&argv, "-ppn");
        snprintf(number, sizeof number, "%d", each);
        opal_argv_append_nosize(&argv, number);
    }
    char **more = NULL == options ? NULL : opal_argv_split(options, ' ');
    for (int i = 0; NULL != more && NULL != more[i]; i++) {
        opal_argv_append_nosize(&argv, more[i]);
    }
    opal_argv_free(more);
    for (int i = 0; NULL != app->argv[i]; i++) {
        opal_argv_append_nosize(&argv, app->argv[i]);
    }
    return argv;
}

static bool add_node(const struct snowflock_message *m)
{
    orte_node_t *node = OBJ_NEW(orte_node_t);

    if (NULL == node || NULL == (node->name = strdup(m->name))) {
        return false;
    }
    node->state = ORTE_NODE_STATE_UP;
    node->slots = m->slots;
    ORTE_FLAG_SET(node, ORTE_NODE_FLAG_SLOTS_GIVEN);
    opal_list_append(&clones.nodes, &node->super);
    return true;
}

/* Whether two commands are the same program with the same arguments, though by another path. */
static bool same_agent(const char *a, const char *b)
{
    size_t na = strcspn(a, " "), nb = strcspn(b, " ");
    char *pa = strndup(a, na), *pb = strndup(b, nb);
    char *ra = NULL == pa ? NULL : realpath(pa, NULL), *rb = NULL == pb ? NULL : realpath(pb, NULL);
    bool same = 0 == strcmp(a + na, b + nb) && NULL != ra && NULL != rb && 0 == strcmp(ra, rb);

    free(pa);
    free(pb);
    free(ra);
    free(rb);
    return same;
}

/*
 * Gives a parameter another value. mca_base_var_set_value would not: the launcher's are for reading only. But they are
 * only read when daemons are launched, except for the agent, which has been looked up by now.
 */
static bool set_parameter(const char *name, const char *value)
{
    const mca_base_var_t *var;
    int index, n;
    char *end;

    if (OPAL_SUCCESS != mca_base_var_find_by_name(name, &index) || OPAL_SUCCESS != mca_base_var_get(index, &var) ||
        NULL == var->mbv_storage) {
        return false;
    }
    mca_base_var_storage_t *storage = var->mbv_storage;
    if (0 == strcmp(name, "plm_rsh_agent")) {
        return NULL != storage->stringval && same_agent(storage->stringval, value);
    }
    switch (var->mbv_type) {
    case MCA_BASE_VAR_TYPE_BOOL:
        if (OPAL_SUCCESS != mca_base_var_enum_bool.value_from_string(&mca_base_var_enum_bool, value, &n)) {
            return false;
        }
        storage->boolval = 0 != n;
        return true;
    case MCA_BASE_VAR_TYPE_INT:
        errno = 0;
        long l = strtol(value, &end, 10);
        if (0 != errno || '\0' != *end || end == value || (int)l != l) {
            return false;
        }
        storage->intval = (int)l;
        return true;
    case MCA_BASE_VAR_TYPE_STRING: {
        char *copy = strdup(value);
        if (NULL == copy) {
            return false;
        }
        free(storage->stringval); /* Open MPI's own are all allocated */
        storage->stringval = copy;
        return true;
    }
    default:
        return false;
    }
}

/* Goes on with the job: its hosts are there. */
static bool allocated(void)
{
    orte_job_t *job = clones.job;

    if (opal_list_is_empty(&clones.nodes)) {
        fail("protocol", "ready, without a host");
        return false;
    }
    /* As the base does with what allocate returns. */
    orte_managed_allocation = true;
    opal_if_do_not_resolve = true;
    int rc = orte_ras_base_node_insert(&clones.nodes, job);
    if (ORTE_SUCCESS != rc) {
        ORTE_ERROR_LOG(rc);
        clones.failed = true;
        return false;
    }
    if (4 < opal_output_get_verbosity(orte_ras_base_framework.framework_output)) {
        orte_ras_base_display_alloc();
    }
    clones.ready = true;
    clones.job = NULL;
    /* The base finds that the allocation has been read, and goes on. */
    ORTE_ACTIVATE_JOB_STATE(job, ORTE_JOB_STATE_ALLOCATE);
    OBJ_RELEASE(job);
    return true;
}

static bool take(char *line, void *context)
{
    struct snowflock_message m;
    char *copy = strdup(line); /* parsing takes it apart */
    bool ok = false;

    (void)context;
    if (NULL == copy) {
        return false;
    }
    if (!snowflock_parse(line, &m) || (clones.ready && SNOWFLOCK_ERROR != m.kind)) {
        /* A secret may be in it. */
        fail("protocol", 0 == strncmp(copy, "env", 3) ? "env ..." : copy);
    } else if (SNOWFLOCK_ERROR == m.kind) {
        if (clones.ready) {
            /* The launcher notices by itself that the clone's daemon is gone; this is why. */
            orte_show_help(SNOWFLOCK_HELP, "lost", true, m.text);
            ok = true;
        } else {
            fail("fork", m.text);
        }
    } else if (SNOWFLOCK_HOST == m.kind) {
        ok = add_node(&m);
    } else if (SNOWFLOCK_MCA == m.kind) {
        ok = set_parameter(m.name, m.text);
        if (!ok) {
            fail("parameter", copy);
        }
    } else if (SNOWFLOCK_ENV == m.kind) {
        /* Remote shell agents get the latter. No rank does: none runs on this machine. */
        ok = OPAL_SUCCESS == opal_setenv(m.name, m.text, true, &environ) &&
             OPAL_SUCCESS == opal_setenv(m.name, m.text, true, &orte_launch_environ);
    } else {
        ok = allocated();
    }
    free(copy);
    return ok;
}

/* Ends the job, or the launcher if all its daemons are gone. What it says of that itself is for developers. */
static void give_up(void)
{
    if (NULL != clones.job) {
        ORTE_ACTIVATE_JOB_STATE(clones.job, ORTE_JOB_STATE_ALLOC_FAILED);
        return;
    }
    ORTE_UPDATE_EXIT_STATUS(ORTE_ERROR_DEFAULT_EXIT_CODE);
    orte_abnormal_term_ordered = true;
    ORTE_ACTIVATE_JOB_STATE(NULL, ORTE_JOB_STATE_FORCED_EXIT);
}

static void hear(int fd, short flags, void *context)
{
    (void)fd;
    (void)flags;
    (void)context;
    int why = snowflock_read(&clones.child, take, NULL);
    if (EAGAIN == why) {
        return;
    }
    stop_hearing();
    if (0 == why) {
        fail(clones.ready ? "gone" : "silent", "");
    } else if (ECANCELED != why) {
        fail("protocol", strerror(why));
    }
    give_up();
}

static int allocate(orte_job_t *job, opal_list_t *nodes)
{
    (void)nodes; /* they come later */
    int rc = check(job);
    if (ORTE_ERR_TAKE_NEXT_OPTION == rc) {
        return rc;
    }
    OBJ_RETAIN(job);
    clones.job = job;
    if (ORTE_SUCCESS != rc) {
        give_up();
        return ORTE_ERR_ALLOCATION_PENDING; /* which has failed, but that is the errmgr's to say */
    }
    orte_app_context_t *app = NULL;
    for (int i = 0; NULL == app && i < job->apps->size; i++) {
        app = opal_pointer_array_get_item(job->apps, i);
    }
    char **argv = NULL == app ? NULL : command(job, app);
    if (NULL == argv) {
        fail("no command", snowflock_parameters.command);
        give_up();
        return ORTE_ERR_ALLOCATION_PENDING;
    }
    rc = snowflock_start(&clones.child, argv, app->cwd);
    if (0 != rc) {
        orte_show_help(SNOWFLOCK_HELP, "start", true, argv[0], NULL == app->cwd ? "." : app->cwd, strerror(rc));
        opal_argv_free(argv);
        give_up();
        return ORTE_ERR_ALLOCATION_PENDING;
    }
    opal_argv_free(argv);
    opal_event_set(orte_event_base, &clones.heard, clones.child.output, OPAL_EV_READ | OPAL_EV_PERSIST, hear, NULL);
    opal_event_set_priority(&clones.heard, ORTE_SYS_PRI);
    opal_event_add(&clones.heard, NULL);
    clones.hearing = true;
    return ORTE_ERR_ALLOCATION_PENDING;
}

static int init(void)
{
    memset(&clones, 0, sizeof clones);
    OBJ_CONSTRUCT(&clones.nodes, opal_list_t);
    return ORTE_SUCCESS;
}

/* Hosts are given back when the launcher ends, not with a job: jobs that it spawns have the same. */
static void deallocate(orte_job_t *job, orte_app_context_t *app)
{
    (void)job;
    (void)app;
}

/*
 * Waits until remote shell agents have ended, as they do when their daemons have, which have been told to. To
 * those that see their clones end first, they were lost.
 */
static void await_agents(void)
{
    orte_job_t *daemons = orte_get_job_data_object(ORTE_PROC_MY_NAME->jobid);
    int left = AGENT_LIMIT;

    for (int i = 1; NULL != daemons && i < daemons->procs->size; i++) {
        orte_proc_t *daemon = opal_pointer_array_get_item(daemons->procs, i);
        while (NULL != daemon && daemon->pid > 0 && left > 0 && !snowflock_ended(daemon->pid)) {
            usleep(1000 * AGENT_INTERVAL);
            left -= AGENT_INTERVAL;
        }
    }
}

static int finalize(void)
{
    char limit[16];

    stop_hearing();
    if (clones.ready && !clones.failed) {
        await_agents();
    }
    if (!snowflock_end(&clones.child, snowflock_parameters.join_limit)) {
        snprintf(limit, sizeof limit, "%d", snowflock_parameters.join_limit);
        orte_show_help(SNOWFLOCK_HELP, "join", true, limit);
    }
    OPAL_LIST_DESTRUCT(&clones.nodes);
    if (NULL != clones.job) {
        OBJ_RELEASE(clones.job);
    }
    clones.job = NULL;
    return ORTE_SUCCESS;
}

static orte_ras_base_module_t module = {init, allocate, deallocate, finalize};

static int query(mca_base_module_t **m, int *priority)
{
    const char *mark = getenv(SNOWFLOCK_MARK);
    bool mine = NULL != mark && strtol(mark, NULL, 10) == getpid();

    *m = NULL;
    *priority = 0;
    if (!mine) {
        return ORTE_ERROR;
    }
    opal_unsetenv(SNOWFLOCK_MARK, &environ);
    opal_unsetenv(OPAL_MCA_PREFIX "plm", &environ);
    opal_unsetenv(OPAL_MCA_PREFIX "plm_rsh_agent", &environ);
    /* Before those of resource managers: ras_snowflock_enable yes is said where one is, too. */
    *priority = 200;
    *m = (mca_base_module_t *)&module;
    return ORTE_SUCCESS;
}



__attribute__((visibility("default"))) orte_ras_base_component_t mca_ras_snowflock_component = {
    .base_version = {ORTE_RAS_BASE_VERSION_2_0_0,
                     .mca_component_name = "snowflock",
                     MCA_BASE_MAKE_VERSION(component, ORTE_MAJOR_VERSION, ORTE_MINOR_VERSION, ORTE_RELEASE_VERSION),
                     .mca_query_component = query,
                     .mca_register_component_params = snowflock_register},
    .base_data = {MCA_BASE_METADATA_PARAM_CHECKPOINT},
};
