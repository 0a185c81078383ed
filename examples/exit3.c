/*
 * exit3: everything goes well, but one rank's exit status is 3.
 *
 *     mpirun-sf -np 4 bin/examples/exit3
 *
 * Rank 2 (the last one where there are fewer than three) exits 3 after
 * MPI_Finalize; the others exit 0. The job's exit status is 3.
 */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	int rank, size;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Finalize();

	int status = rank == (size > 2 ? 2 : size - 1) ? 3 : 0;
	printf("rank %d of %d exits %d\n", rank, size, status);
	return status;
}
