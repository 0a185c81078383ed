#define _GNU_SOURCE
#include "orte_config.h"

#include "snowflock.h"

#include <dlfcn.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "opal/mca/base/base.h"
#include "opal/mca/base/mca_base_var.h"
#include "opal/util/path.h"
#include "opal/util/show_help.h"
#include "orte/constants.h"

struct snowflock_parameters snowflock_parameters;

static const mca_base_var_enum_value_t enable_values[] = {
    {SNOWFLOCK_NO, "no"}, {SNOWFLOCK_YES, "yes"}, {SNOWFLOCK_AUTO, "auto"}, {0, NULL}};

static const char *const names[] = {"enable", "command", "options", "slots", "join_limit"};

static int parameter(const char *name, const char *what, mca_base_var_type_t type, mca_base_var_enum_t *values,
                     mca_base_var_info_lvl_t level, void *storage)
{
    /* DWG: Open MPI takes the registration back before it unloads mca_ras_snowflock. */
    int index = mca_base_var_register("orte", "ras", "snowflock", name, what, type, values, 0, MCA_BASE_VAR_FLAG_DWG,
                                      level, MCA_BASE_VAR_SCOPE_READONLY, storage);
    return index < 0 ? index : ORTE_SUCCESS;
}

int snowflock_register(void)
{
    struct snowflock_parameters *p = &snowflock_parameters;
    mca_base_var_enum_t *values;

    *p = (struct snowflock_parameters){.enable = SNOWFLOCK_AUTO, .command = "mpirun-sf", .join_limit = 60};
    int rc = mca_base_var_enum_create("ras_snowflock_enable", enable_values, &values);
    if (ORTE_SUCCESS != rc) {
        return rc;
    }
    rc = parameter("enable",
                   "Run the ranks in clones, which mpirun-sf makes: auto is in a virtual machine of mpirun-sf, yes "
                   "is on a host, too",
                   MCA_BASE_VAR_TYPE_INT, values, OPAL_INFO_LVL_2, &p->enable);
    OBJ_RELEASE(values);
    if (ORTE_SUCCESS != rc) {
        return rc;
    }
    rc = parameter("command", "The mpirun-sf that makes the clones, a path or a name on PATH",
                   MCA_BASE_VAR_TYPE_STRING, NULL, OPAL_INFO_LVL_3, &p->command);
    if (ORTE_SUCCESS != rc) {
        return rc;
    }
    rc = parameter("options", "Options for mpirun-sf, with spaces between them (--memory 1G -ppn 2)",
                   MCA_BASE_VAR_TYPE_STRING, NULL, OPAL_INFO_LVL_3, &p->options);
    if (ORTE_SUCCESS != rc) {
        return rc;
    }
    rc = parameter("slots", "How many ranks the clones have room for, where that is more than -np: for MPI_Comm_spawn",
                   MCA_BASE_VAR_TYPE_INT, NULL, OPAL_INFO_LVL_3, &p->slots);
    if (ORTE_SUCCESS != rc) {
        return rc;
    }
    return parameter("join_limit", "How many seconds the clones may take to be gone when mpirun ends",
                     MCA_BASE_VAR_TYPE_INT, NULL, OPAL_INFO_LVL_6, &p->join_limit);
}

void snowflock_deregister(void)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int index = mca_base_var_find("orte", "ras", "snowflock", names[i]);
        if (index >= 0) {
            mca_base_var_deregister(index);
        }
    }
}

void snowflock_find_help(void)
{
    Dl_info here;
    char *folder, *file;

    if (0 == dladdr(enable_values, &here) || NULL == here.dli_fname || NULL == (folder = strdup(here.dli_fname))) {
        return;
    }
    if (asprintf(&file, "%s/%s", dirname(folder), SNOWFLOCK_HELP) >= 0) {
        if (0 == access(file, R_OK)) {
            opal_show_help_add_dir(dirname(file));
        }
        free(file);
    }
    free(folder);
}

char *snowflock_command(void) { return opal_path_findv(snowflock_parameters.command, X_OK, environ, NULL); }
