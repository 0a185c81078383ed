/*
 * alltoall: every rank sends a different block to every rank, and checks each
 * word of what arrives.
 *
 *     mpirun-sf -np 4 bin/examples/alltoall [MEGABYTES]    default: 16
 *
 * MEGABYTES is what one rank sends in all, so each block is that over the
 * number of ranks. Every pair of clones has a connection open at once.
 *
 * Prints, on rank 0:  alltoall of M MB on N ranks: T s, every word right
 * Exit status 1 when a word is wrong; the first wrong one is named.
 */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* word is what rank `from` puts at place i of its block for rank `to`. */
static uint32_t word(int from, int to, size_t i)
{
	return (uint32_t)i * 2654435761u ^ (uint32_t)from << 24 ^ (uint32_t)to << 16;
}

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	int rank, size;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);

	long megabytes = argc > 1 ? atol(argv[1]) : 16;
	if (megabytes < 1 || megabytes > 1024) {
		if (rank == 0)
			fprintf(stderr, "alltoall: the size must be 1 to 1024 megabytes\n");
		MPI_Finalize();
		return 2;
	}
	size_t words = (size_t)megabytes * 1024 * 1024 / sizeof(uint32_t) / size;

	uint32_t *out = malloc(words * size * sizeof *out);
	uint32_t *in = calloc(words * size, sizeof *in);
	if (!out || !in) {
		fprintf(stderr, "alltoall: rank %d: not enough memory for 2 x %ld MB\n", rank, megabytes);
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
	for (int to = 0; to < size; to++)
		for (size_t i = 0; i < words; i++)
			out[to * words + i] = word(rank, to, i);

	MPI_Barrier(MPI_COMM_WORLD);
	double start = MPI_Wtime();
	MPI_Alltoall(out, (int)words, MPI_UINT32_T, in, (int)words, MPI_UINT32_T, MPI_COMM_WORLD);
	double seconds = MPI_Wtime() - start;

	int wrong = 0, any = 0;
	for (int from = 0; from < size && !wrong; from++)
		for (size_t i = 0; i < words && !wrong; i++)
			if (in[from * words + i] != word(from, rank, i)) {
				fprintf(stderr, "alltoall: rank %d: word %zu from rank %d is %08x, expected %08x\n",
					rank, i, from, in[from * words + i], word(from, rank, i));
				wrong = 1;
			}
	MPI_Allreduce(&wrong, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);

	if (rank == 0 && !any)
		printf("alltoall of %ld MB on %d ranks: %.2f s, every word right\n", megabytes, size, seconds);
	free(out);
	free(in);
	MPI_Finalize();
	return any;
}
