// Spawns, one after another, as many ranks as each argument says: N of them, N-M (from N to M, as there is room).
// "stay" instead makes all that were spawned wait, and what spawned them.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int rank, size;

static void child(int stays)
{
	MPI_Comm parent;
	char name[MPI_MAX_PROCESSOR_NAME];
	int length, one = 1;

	MPI_Comm_get_parent(&parent);
	MPI_Get_processor_name(name, &length);
	printf("child %d of %d on %s\n", rank, size, name);
	fflush(stdout);
	MPI_Reduce(&one, NULL, 1, MPI_INT, MPI_SUM, 0, parent);
	if (stays)
		sleep(600);
	MPI_Comm_disconnect(&parent);
}

static int spawn(char *self, const char *how, int stays)
{
	MPI_Comm children;
	MPI_Info info = MPI_INFO_NULL;
	char *args[] = {"child", stays ? "stay" : NULL, NULL};
	int n = atoi(how), most = n, none = 0, sum = 0, error, class;
	const char *range = strchr(how, '-');

	if (range) {
		char soft[32];
		most = atoi(range + 1);
		snprintf(soft, sizeof soft, "%d:%d", n, most);
		MPI_Info_create(&info);
		MPI_Info_set(info, "soft", soft);
	}
	error = MPI_Comm_spawn(self, args, most, info, 0, MPI_COMM_WORLD, &children, MPI_ERRCODES_IGNORE);
	if (error != MPI_SUCCESS) {
		MPI_Error_class(error, &class);
		if (rank == 0)
			printf("spawn %s: %s\n", how, class == MPI_ERR_SPAWN ? "MPI_ERR_SPAWN" : "another error");
		return 0;
	}
	MPI_Reduce(&none, &sum, 1, MPI_INT, MPI_SUM, rank == 0 ? MPI_ROOT : MPI_PROC_NULL, children);
	if (rank == 0)
		printf("spawn %s: %d children\n", how, sum);
	fflush(stdout);
	if (stays)
		sleep(600);
	MPI_Comm_disconnect(&children);
	return sum;
}

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	int stays = strcmp(argv[argc - 1], "stay") == 0;
	if (argc > 1 && strcmp(argv[1], "child") == 0)
		child(stays);
	else
		for (int i = 1; i < argc - stays; i++)
			spawn(argv[0], argv[i], stays);
	MPI_Finalize();
	return 0;
}
