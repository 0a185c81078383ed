/* A program of Open MPI: says where it is, and does what its argument says. */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "hello";
	char host[256], dir[1024];
	int rank, size, sum, last, token, c;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	last = rank == size - 1;
	gethostname(host, sizeof host);
	MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);

	if (strcmp(what, "hello") == 0) {
		/* Around the ring, each adds its rank. */
		token = 0;
		if (rank > 0)
			MPI_Recv(&token, 1, MPI_INT, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		token += rank;
		if (size > 1)
			MPI_Send(&token, 1, MPI_INT, (rank + 1) % size, 0, MPI_COMM_WORLD);
		if (rank == 0 && size > 1)
			MPI_Recv(&token, 1, MPI_INT, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		printf("rank %d of %d on %s: sum %d, token %d, uid %d, MINE=%s, in %s\n", rank, size, host, sum, token,
			getuid(), getenv("MINE") ? getenv("MINE") : "", getcwd(dir, sizeof dir));
	} else if (strcmp(what, "input") == 0) {
		if (rank == 0)
			while ((c = getchar()) != EOF)
				putchar(c);
	} else if (strcmp(what, "exit") == 0) {
		MPI_Finalize();
		return last ? 3 : 0;
	} else if (strcmp(what, "crash") == 0) {
		if (last)
			raise(SIGSEGV);
	} else if (strcmp(what, "abort") == 0) {
		if (last)
			MPI_Abort(MPI_COMM_WORLD, 7);
	} else if (strcmp(what, "sleep") == 0) {
		printf("rank %d on %s sleeps\n", rank, host);
		fflush(stdout);
		sleep(100);
	}
	MPI_Barrier(MPI_COMM_WORLD);
	MPI_Finalize();
	return 0;
}
