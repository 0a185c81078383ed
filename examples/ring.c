/*
 * ring: a token goes from rank to rank and must come back as it should.
 *
 *     mpirun-sf -np 4 bin/examples/ring [LAPS]        default: 10 laps
 *
 * Every rank adds its number plus one to the token before it passes it on, so
 * after each lap rank 0 knows what it must hold. It uses point-to-point
 * messages between neighbours only: each clone talks to exactly two others.
 *
 * Prints, on rank 0:  ring of N ranks, L laps: token T, as expected
 * Exit status 1 when the token is wrong.
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
	int laps = argc > 1 ? atoi(argv[1]) : 10;

	int next = (rank + 1) % size, previous = (rank + size - 1) % size;
	long long token = 0, per_lap = (long long)size * (size + 1) / 2;
	int wrong = 0;

	for (int lap = 0; lap < laps; lap++) {
		if (rank == 0) {
			token += 1;
			/* Sendrecv and not Send: with one rank the neighbour is oneself. */
			MPI_Sendrecv_replace(&token, 1, MPI_LONG_LONG, next, lap,
					     previous, lap, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			if (token != per_lap * (lap + 1)) {
				fprintf(stderr, "ring: lap %d: token is %lld, expected %lld\n",
					lap + 1, token, per_lap * (lap + 1));
				wrong = 1;
				token = per_lap * (lap + 1);
			}
		} else {
			MPI_Recv(&token, 1, MPI_LONG_LONG, previous, lap,
				 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			token += rank + 1;
			MPI_Send(&token, 1, MPI_LONG_LONG, next, lap, MPI_COMM_WORLD);
		}
	}

	if (rank == 0 && !wrong)
		printf("ring of %d ranks, %d laps: token %lld, as expected\n", size, laps, token);
	MPI_Finalize();
	return wrong;
}
