/*
 * stdin: rank 0 reads standard input to its end and tells the others about it.
 *
 *     seq 100000 | mpirun-sf -np 4 bin/examples/stdin
 *
 * Standard input goes to rank 0 alone. Every other rank must see its own end
 * at once: a rank that waits there would hang the job.
 *
 * Prints, per rank:  rank R of N: stdin had B bytes, checksum C
 * Exit status 1 when a rank other than 0 finds a byte on its own input.
 */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	int rank, size;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);

	/* Every rank reads, so that one with an open input is caught. */
	unsigned char buffer[65536];
	size_t n;
	uint64_t seen[2] = {0, 14695981039346656037u}; /* bytes; FNV-1a */
	while ((n = fread(buffer, 1, sizeof buffer, stdin)) > 0) {
		seen[0] += n;
		for (size_t i = 0; i < n; i++)
			seen[1] = (seen[1] ^ buffer[i]) * 1099511628211u;
	}

	int bad = rank != 0 && seen[0] != 0;
	if (bad)
		fprintf(stderr, "stdin: rank %d found %llu bytes on its own input\n",
			rank, (unsigned long long)seen[0]);

	MPI_Bcast(seen, 2, MPI_UINT64_T, 0, MPI_COMM_WORLD);
	printf("rank %d of %d: stdin had %llu bytes, checksum %016llx\n", rank, size,
	       (unsigned long long)seen[0], (unsigned long long)seen[1]);
	MPI_Finalize();
	return bad;
}
