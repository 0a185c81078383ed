/* An MPI program that ends as its argument says, on rank 1, while the others wait. */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "well";
	int rank, size, found, local, locals, universe, *attribute;
	MPI_Comm node;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	if (rank == 1) {
		if (!strcmp(how, "abort"))
			MPI_Abort(MPI_COMM_WORLD, atoi(argv[2]));
		if (!strcmp(how, "exit"))
			_exit(atoi(argv[2]));
		if (!strcmp(how, "kill"))
			kill(getpid(), atoi(argv[2]));
	}
	if (!strcmp(how, "abort") || !strcmp(how, "exit") || !strcmp(how, "kill"))
		MPI_Barrier(MPI_COMM_WORLD);
	if (!strcmp(how, "where")) {
		MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
		MPI_Comm_rank(node, &local);
		MPI_Comm_size(node, &locals);
		MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_UNIVERSE_SIZE, &attribute, &found);
		universe = found ? *attribute : 0;
		MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_APPNUM, &attribute, &found);
		printf("rank %d of %d is %d of %d, universe %d, program %d\n", rank, size, local, locals, universe, found ? *attribute : -1);
	} else
		printf("rank %d of %d\n", rank, size);
	MPI_Finalize();
	return !strcmp(how, "after") ? rank : 0;
}
