/* A program for the tests that speaks PMI-2 through Slurm's client library. "all" asks everything but spawn and abort;
   "spawn FILE" starts two of itself and one more of itself as "child", which print what they find; "abort" has rank 1 abort;
   "again" is finished and begun anew by a second process on the same connection. */
#include <slurm/pmi2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int rank, size, spawned, appnum;

static void must(int rc, const char *what)
{
    if (rc) {
        printf("rank %d: %s failed with %d\n", rank, what, rc);
        exit(3);
    }
}

static void all(const char *job)
{
    char key[64], value[1100], got[1100];
    int found, length;

    snprintf(key, sizeof key, "card-%d", rank);
    memset(value, 'a' + rank, 1023);
    value[1023] = 0;
    memcpy(value, "a;b=c;; d", 9);
    must(PMI2_KVS_Put(key, value), "put");
    must(PMI2_KVS_Fence(), "fence");
    for (int r = 0; r < size; r++) {
        snprintf(key, sizeof key, "card-%d", r);
        must(PMI2_KVS_Get(job, r, key, got, sizeof got, &length), "get");
        if (length != 1023 || memcmp(got, "a;b=c;; d", 9) || got[1022] != 'a' + r)
            printf("rank %d: %s is %d bytes: %s\n", rank, key, length, got);
    }
    if (!PMI2_KVS_Get(job, PMI2_ID_NULL, "never", got, sizeof got, &length))
        printf("rank %d: found what nobody has put\n", rank);

    must(PMI2_Info_GetJobAttr("PMI_process_mapping", got, sizeof got, &found), "process mapping");
    printf("rank %d: mapping %s\n", rank, found ? got : "unknown");
    must(PMI2_Info_GetJobAttr("universeSize", got, sizeof got, &found), "universe size");
    printf("rank %d: universe %s\n", rank, found ? got : "unknown");
    must(PMI2_Info_GetJobAttr("PMI_hwloc_xmlfile", got, sizeof got, &found), "topology");
    if (found)
        printf("rank %d: topology in %s\n", rank, got);

    /* The even ranks wait for their odd neighbours, which share their clone. */
    snprintf(key, sizeof key, "shared-%d", rank / 2);
    if (rank % 2) {
        must(PMI2_Info_PutNodeAttr(key, "here"), "put node attribute");
    } else {
        must(PMI2_Info_GetNodeAttr(key, got, sizeof got, &found, 1), "get node attribute");
        printf("rank %d: %s is %s\n", rank, key, found ? got : "unknown");
    }
    must(PMI2_Info_GetNodeAttr("never", got, sizeof got, &found, 0), "get no node attribute");
    if (found)
        printf("rank %d: found a node attribute that nobody has put\n", rank);

    if (rank == 0)
        must(PMI2_Nameserv_publish("ocean model", NULL, "tag#0$port#1$"), "publish");
    must(PMI2_KVS_Fence(), "second fence");
    must(PMI2_Nameserv_lookup("ocean model", NULL, got, sizeof got), "lookup");
    printf("rank %d: published %s\n", rank, got);
    must(PMI2_KVS_Fence(), "third fence");
    if (rank == size - 1)
        must(PMI2_Nameserv_unpublish("ocean model", NULL), "unpublish");
    must(PMI2_KVS_Fence(), "fourth fence");
    if (!PMI2_Nameserv_lookup("ocean model", NULL, got, sizeof got))
        printf("rank %d: found what was unpublished\n", rank);

    for (int turn = 0; turn < 5; turn++) {
        char left[64], right[64], want[64];
        int at, of;

        snprintf(value, sizeof value, "rank %d in turn %d", rank, turn);
        must(PMIX_Ring(value, &at, &of, left, right, sizeof left), "ring");
        snprintf(want, sizeof want, "rank %d in turn %d", (rank + size - 1) % size, turn);
        if (at != rank || of != size || strcmp(left, want))
            printf("rank %d: ring %d of %d, left %s\n", rank, at, of, left);
        snprintf(want, sizeof want, "rank %d in turn %d", (rank + 1) % size, turn);
        if (strcmp(right, want))
            printf("rank %d: right %s\n", rank, right);
    }
}

static void spawn(const char *self)
{
    const char *cmds[] = {self, self}, *first[] = {"child", "a b;c", "", NULL}, *second[] = {"child", NULL};
    const char **argvs[] = {first, second};
    int argcs[] = {3, 1}, procs[] = {2, 1}, infos[] = {1, 0}, errors[3];
    MPID_Info wdir = {.key = "wdir", .value = "/"}, parent = {.key = "PARENT", .value = "tag#0$"};
    const MPID_Info *info[] = {&wdir, NULL}, *preput[] = {&parent};
    char job[64];

    must(PMI2_Job_Spawn(2, cmds, argcs, argvs, procs, infos, info, 1, preput, job, sizeof job, errors), "spawn");
    printf("rank %d: spawned %s\n", rank, job);
}

static void child(const char *job, int argc, char **argv)
{
    char got[1100];
    int length;

    must(PMI2_KVS_Get(job, PMI2_ID_NULL, "PARENT", got, sizeof got, &length), "get of the parent");
    printf("child %d of %d, program %d of %s: parent %s, %d arguments", rank, size, appnum, job, got, argc - 1);
    for (int i = 2; i < argc; i++)
        printf(" [%s]", argv[i]);
    printf("\n");
}

int main(int argc, char **argv)
{
    char job[64];

    must(PMI2_Init(&spawned, &size, &rank, &appnum), "init");
    must(PMI2_Job_GetId(job, sizeof job), "job ID");
    if (!strcmp(argv[1], "all"))
        all(job);
    else if (!strcmp(argv[1], "spawn"))
        spawn(argv[0]);
    else if (!strcmp(argv[1], "child") && spawned)
        child(job, argc, argv);
    else if (!strcmp(argv[1], "abort") && rank == 1)
        PMI2_Abort(1, "out of luck");
    must(PMI2_Finalize(), "finalize");
    return 0;
}
