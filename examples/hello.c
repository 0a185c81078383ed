/*
 * hello: every rank says who it is and where it runs, after a few collectives.
 *
 *     mpirun-sf -np 4 bin/examples/hello
 *
 * It shows the least that any MPI job needs: MPI_Init, an address for every
 * pair of ranks that talk, and MPI_Finalize. The host name is that of the
 * clone, so the output also shows how ranks were spread over clones.
 *
 * Prints, per rank:  hello from rank R of N on HOST: sum S, allreduce T us
 * Exit status 1 when the sum is wrong.
 */
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>

enum { ROUNDS = 100 };

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	int rank, size;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);

	char host[256] = "";
	gethostname(host, sizeof host - 1);

	int sum = 0;
	double start = MPI_Wtime();
	for (int i = 0; i < ROUNDS; i++)
		MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	double micros = (MPI_Wtime() - start) / ROUNDS * 1e6;

	printf("hello from rank %d of %d on %s: sum %d, allreduce %.0f us\n",
	       rank, size, host, sum, micros);
	MPI_Finalize();
	return sum == size * (size - 1) / 2 ? 0 : 1;
}
