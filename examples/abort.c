/*
 * abort: rank 1 gives up with MPI_Abort(MPI_COMM_WORLD, 7) while the others wait.
 *
 *     mpirun-sf -np 4 bin/examples/abort
 *
 * The whole job ends, with exit status 7. (With one rank, rank 0 aborts.)
 */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	int rank, size;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);

	if (rank == (size > 1 ? 1 : 0)) {
		printf("rank %d of %d aborts\n", rank, size);
		fflush(stdout);
		MPI_Abort(MPI_COMM_WORLD, 7);
	}
	MPI_Barrier(MPI_COMM_WORLD);
	MPI_Finalize();
	return 0;
}
