/*
 * mca_ess_snowflock decides, before anything of the launcher is set up, whether this launcher gets clones; see
 * snowflock.h.
 */
#define _GNU_SOURCE
#include "orte_config.h"

#include "snowflock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "opal/mca/base/base.h"
#include "opal/util/cmd_line.h"
#include "opal/util/opal_environ.h"
#include "opal/util/output.h"
#include "orte/constants.h"
#include "orte/mca/ess/base/base.h"
#include "orte/mca/ess/ess.h"
#include "orte/orted/orted_submit.h"
#include "orte/runtime/orte_globals.h"
#include "orte/util/proc_info.h"
#include "orte/util/show_help.h"

/* Where the agent of a virtual machine listens. No host has this path. */
#define AGENT "/run/mpirun-sf/sf.sock"

/* Options of mpirun that say where ranks run. */
static const char *const places[] = {"host", "hostfile", "machinefile", "default-hostfile", "rankfile", "app"};

/*
 * The same as parameters, and those that say how daemons are started. The command line's are variables by now. Files
 * are for all of a machine's jobs, so what they say of this is overruled.
 */
static const char *const place_variables[] = {
    OPAL_MCA_PREFIX "orte_rankfile", OPAL_MCA_PREFIX "rmaps_rank_file_path", OPAL_MCA_PREFIX "plm_rsh_agent",
    OPAL_MCA_PREFIX "pls_rsh_agent", OPAL_MCA_PREFIX "orte_rsh_agent"};

/* What resource managers set in a job. */
static const char *const managers[] = {"SLURM_JOBID", "SLURM_JOB_ID", "PE_HOSTFILE", "PBS_JOBID",
                                       "LSB_JOBID",   "FLUX_JOB_ID",  "COBALT_JOBID", "LOADL_STEP_ID"};

static bool in_vm(void)
{
    struct stat st;
    return 0 == stat(AGENT, &st) && S_ISSOCK(st.st_mode);
}

/* Whether a variable, which is a list of components or of exclusions, leaves one in. */
static bool lets(const char *variable, const char *component)
{
    const char *value = getenv(variable);
    bool in = false, except = NULL != value && '^' == *value;

    if (NULL == value) {
        return true;
    }
    char *list = strdup(value + except);
    for (char *rest = list, *name; NULL != (name = strsep(&rest, ","));) {
        in = in || 0 == strcmp(name, component);
    }
    free(list);
    return in != except;
}

/*
 * Why this process stands aside, NULL if it does not. Nothing is started or opened to find out.
 */
static const char *aside(enum snowflock_enable enable)
{
    if (SNOWFLOCK_NO == enable) {
        return "ras_snowflock_enable is no";
    }
    if (NULL == orte_cmd_line || NULL != getenv("OMPI_UNIVERSE_SIZE")) {
        return "this is not a launcher that a user has started";
    }
    if (SNOWFLOCK_AUTO == enable && !in_vm()) {
        return "this is no virtual machine of mpirun-sf, and ras_snowflock_enable is auto";
    }
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        if (opal_cmd_line_is_taken(orte_cmd_line, places[i])) {
            return "the command line says where ranks run";
        }
    }
    for (size_t i = 0; i < sizeof place_variables / sizeof *place_variables; i++) {
        if (NULL != getenv(place_variables[i])) {
            return "a parameter says where ranks run, or how daemons are started";
        }
    }
    if (orte_default_hostfile_given) {
        return "there is a default hostfile";
    }
    for (size_t i = 0; SNOWFLOCK_AUTO == enable && i < sizeof managers / sizeof *managers; i++) {
        if (NULL != getenv(managers[i])) {
            return "a resource manager says where ranks run";
        }
    }
    if (!lets(OPAL_MCA_PREFIX "ras", "snowflock")) {
        return "parameter ras leaves it out";
    }
    if (!lets(OPAL_MCA_PREFIX "plm", "rsh")) {
        return "parameter plm leaves rsh out, which starts daemons in clones";
    }
    return NULL;
}

/* Lets the launcher use mpirun-sf's remote shell agent. */
static int use(const char *command)
{
    char *agent, *mark;

    if (NULL != strpbrk(command, " :,\t\"")) {
        orte_show_help(SNOWFLOCK_HELP, "path", true, command);
        return OPAL_ERR_FATAL;
    }
    if (asprintf(&agent, "%s ompi agent", command) < 0) {
        return OPAL_ERR_FATAL;
    }
    if (asprintf(&mark, "%ld", (long)getpid()) < 0) {
        free(agent);
        return OPAL_ERR_FATAL;
    }
    opal_setenv(OPAL_MCA_PREFIX "plm", "rsh", true, &environ);
    opal_setenv(OPAL_MCA_PREFIX "plm_rsh_agent", agent, true, &environ);
    opal_setenv(SNOWFLOCK_MARK, mark, true, &environ);
    free(agent);
    free(mark);
    return OPAL_SUCCESS;
}

static int query(mca_base_module_t **module, int *priority)
{
    *module = NULL;
    *priority = -1;
    if (!ORTE_PROC_IS_HNP || ORTE_SUCCESS != snowflock_register()) {
        return ORTE_ERROR;
    }
    snowflock_find_help();
    int rc = ORTE_ERROR;
    enum snowflock_enable enable = (enum snowflock_enable)snowflock_parameters.enable;
    const char *why = aside(enable);
    char *command = NULL == why ? snowflock_command() : NULL;
    if (NULL != command) {
        rc = OPAL_SUCCESS == use(command) ? ORTE_ERROR : OPAL_ERR_FATAL;
    } else if (NULL == why) {
        why = "there is no mpirun-sf";
        if (SNOWFLOCK_YES == enable) {
            orte_show_help(SNOWFLOCK_HELP, "no command", true, snowflock_parameters.command);
            rc = OPAL_ERR_FATAL;
        }
    }
    opal_output_verbose(1, orte_ess_base_framework.framework_output, "ess:snowflock: %s",
                        NULL == why ? "ranks run in clones" : why);
    free(command);
    /* They are registered again by mca_ras_snowflock: this component is unloaded now. */
    snowflock_deregister();
    return rc;
}

__attribute__((visibility("default"))) orte_ess_base_component_t mca_ess_snowflock_component = {
    .base_version = {ORTE_ESS_BASE_VERSION_3_0_0,
                     .mca_component_name = "snowflock",
                     MCA_BASE_MAKE_VERSION(component, ORTE_MAJOR_VERSION, ORTE_MINOR_VERSION, ORTE_RELEASE_VERSION),
                     .mca_query_component = query},
    .base_data = {MCA_BASE_METADATA_PARAM_CHECKPOINT},
};
