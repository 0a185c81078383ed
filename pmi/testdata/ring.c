/* A program for the tests: "ring" passes a number round and sums the ranks; "abort N CODE" has rank N call MPI_Abort;
   "leave N CODE" has rank N exit without MPI_Finalize; "names" has rank 0 publish a name that the last rank looks up, and each look up one
   that is not there; "universe" prints the universe's size. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int rank, size, token = 0, sum = 0, *appnum, found;
    char port[MPI_MAX_PORT_NAME];
    const char *what = argc > 1 ? argv[1] : "ring";

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);

    if (argc > 3 && rank == atoi(argv[2])) {
        if (!strcmp(what, "abort"))
            MPI_Abort(MPI_COMM_WORLD, atoi(argv[3]));
        if (!strcmp(what, "leave"))
            _exit(atoi(argv[3]));
    }
    if (strcmp(what, "ring") && argc > 3)
        sleep(60); /* until the launcher ends it */

    if (!strcmp(what, "names")) {
        MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
        if (rank == 0 && MPI_Publish_name("ocean", MPI_INFO_NULL, "tag#0$port#99$"))
            printf("publish failed\n");
        MPI_Barrier(MPI_COMM_WORLD);
        if (rank == size - 1) {
            printf("lookup %s\n", MPI_Lookup_name("ocean", MPI_INFO_NULL, port) ? "failed" : port);
            printf("unpublish %s\n", MPI_Unpublish_name("ocean", MPI_INFO_NULL, port) ? "failed" : "done");
        }
        printf("lookup of another %s\n", MPI_Lookup_name("atmosphere", MPI_INFO_NULL, port) ? "failed" : port);
    }

    if (!strcmp(what, "universe")) {
        int *universe;
        MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_UNIVERSE_SIZE, &universe, &found);
        printf("universe %d\n", found ? *universe : -1);
    }

    if (rank > 0)
        MPI_Recv(&token, 1, MPI_INT, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    token += rank;
    if (rank < size - 1)
        MPI_Send(&token, 1, MPI_INT, rank + 1, 0, MPI_COMM_WORLD);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_APPNUM, &appnum, &found);
    printf("rank %d of %d token %d sum %d appnum %d\n", rank, size, token, sum, found ? *appnum : -1);
    MPI_Finalize();
    return 0;
}
