/*
 * What the two components share: the parameters, and the decision whether they act.
 *
 * Open MPI's launcher opens its frameworks in this order: ess, plm (which looks for its remote shell agent there
 * and then, and is of no use on a machine without), oob, ras. A component of ras alone would come too late, so
 *
 *  1. mca_ess_snowflock, which is asked first whether it is the environment, decides whether clones are wanted. It
 *     sets the parameters that plm reads, by environment variables, and says no to what it was asked.
 *  2. mca_ras_snowflock takes the variables away again, so that no daemon and no rank gets them, and is the allocator.
 *
 * Between them, SNOWFLOCK_MARK says which process the variables are of.
 */
#ifndef SNOWFLOCK_H
#define SNOWFLOCK_H

#include <stdbool.h>

#define SNOWFLOCK_MARK "MPIRUN_SF_ORTERUN"
#define SNOWFLOCK_HELP "help-ras-snowflock.txt"

enum snowflock_enable { SNOWFLOCK_NO, SNOWFLOCK_YES, SNOWFLOCK_AUTO };

/* The parameters, ras_snowflock_*. */
struct snowflock_parameters {
    int enable;      /* enum snowflock_enable */
    char *command;   /* mpirun-sf */
    char *options;   /* more options for it, NULL for none */
    int slots;       /* ranks to have room for, if there are fewer */
    int join_limit;  /* seconds that the clones may take to be gone */
};
extern struct snowflock_parameters snowflock_parameters;

/* Registers the parameters, which reads them. A status of Open MPI's. */
int snowflock_register(void);

/* Takes the registration back. */
void snowflock_deregister(void);

/* Lets show_help find the texts, where they lie beside this component and not with those of Open MPI. */
void snowflock_find_help(void);

/* The path of the command. NULL if it is not there; free it. */
char *snowflock_command(void);

#endif
