/*
 * crash: one rank dies of a segmentation fault while the others wait for it.
 *
 *     mpirun-sf -np 4 bin/examples/crash [RANK]       default: the last rank
 *
 * The others sit in a barrier that can never end, so the job ends only because
 * the launcher ends it: with a line that names rank, clone and signal, and with
 * exit status 139 (128 + SIGSEGV).
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	int rank, size;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	int victim = argc > 1 ? atoi(argv[1]) : size - 1;

	if (rank == victim) {
		printf("rank %d of %d follows a null pointer\n", rank, size);
		fflush(stdout);
		/* Twice volatile: without, the compiler drops the store, and nothing crashes. */
		volatile int *volatile nowhere = NULL;
		*nowhere = 1;
	}
	MPI_Barrier(MPI_COMM_WORLD);
	MPI_Finalize();
	return 0;
}
