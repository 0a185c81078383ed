/* singleton HOW: started without mpiexec, it spawns two ranks of itself, which send it their numbers.
   HOW is well; crash and abort: the second rank does, while the others wait for it; leave: the ranks end with status 7, after
   MPI, and this process goes on for longer than they. */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	MPI_Comm parent, ranks;
	char *args[2] = {argc > 1 ? argv[1] : "well", NULL};
	int me, got[2];

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &me);
	MPI_Comm_get_parent(&parent);
	if (parent == MPI_COMM_NULL) {
		MPI_Comm_spawn(argv[0], args, 2, MPI_INFO_NULL, 0, MPI_COMM_WORLD, &ranks, MPI_ERRCODES_IGNORE);
		for (int i = 0; i < 2; i++)
			MPI_Recv(&got[i], 1, MPI_INT, i, 0, ranks, MPI_STATUS_IGNORE);
		printf("the ranks sent %d %d\n", got[0], got[1]);
		MPI_Comm_disconnect(&ranks);
		MPI_Finalize();
		if (!strcmp(args[0], "leave")) {
			sleep(3);
			printf("went on after MPI\n");
		}
		return 0;
	}
	if (me == 1 && !strcmp(args[0], "crash"))
		raise(SIGSEGV);
	if (me == 1 && !strcmp(args[0], "abort"))
		MPI_Abort(MPI_COMM_WORLD, 6);
	MPI_Send(&me, 1, MPI_INT, 0, 0, parent);
	MPI_Comm_disconnect(&parent);
	MPI_Finalize();
	return strcmp(args[0], "leave") ? 0 : 7;
}
