// What a rank does is its first argument.
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int rank, size;

static void ring(void)
{
	for (int round = 0; round < 10; round++) {
		int token = round * 1000, next = (rank + 1) % size, last = (rank + size - 1) % size;
		if (rank == 0) {
			MPI_Send(&token, 1, MPI_INT, next, 0, MPI_COMM_WORLD);
			MPI_Recv(&token, 1, MPI_INT, last, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			if (token != round * 1000 + size - 1)
				MPI_Abort(MPI_COMM_WORLD, 99);
		} else {
			MPI_Recv(&token, 1, MPI_INT, last, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			token++;
			MPI_Send(&token, 1, MPI_INT, next, 0, MPI_COMM_WORLD);
		}
	}
}

static void alltoall(int n)
{
	int *out = malloc(sizeof *out * n * size), *in = malloc(sizeof *in * n * size);
	for (int i = 0; i < n * size; i++)
		out[i] = rank * 1000000 + i;
	MPI_Alltoall(out, n, MPI_INT, in, n, MPI_INT, MPI_COMM_WORLD);
	for (int p = 0; p < size; p++)
		for (int i = 0; i < n; i++)
			if (in[p * n + i] != p * 1000000 + rank * n + i)
				MPI_Abort(MPI_COMM_WORLD, 98);
	free(out), free(in);
}

static void spawn(char *self, int n)
{
	MPI_Comm children;
	int codes[16], sum = 0, mine = 0, *appnum, flag;
	char *args[] = {"child", NULL};
	MPI_Comm_spawn(self, args, n, MPI_INFO_NULL, 0, MPI_COMM_WORLD, &children, codes);
	MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_APPNUM, &appnum, &flag);
	MPI_Reduce(&mine, &sum, 1, MPI_INT, MPI_SUM, rank == 0 ? MPI_ROOT : MPI_PROC_NULL, children);
	if (rank == 0)
		printf("children sum %d\n", sum);
	MPI_Comm_disconnect(&children);
}

static void child(void)
{
	MPI_Comm parent;
	int mine = rank + 10;
	MPI_Comm_get_parent(&parent);
	if (parent == MPI_COMM_NULL)
		MPI_Abort(MPI_COMM_WORLD, 97);
	MPI_Reduce(&mine, NULL, 1, MPI_INT, MPI_SUM, 0, parent);
	MPI_Comm_disconnect(&parent);
}

static void publish(void)
{
	char port[MPI_MAX_PORT_NAME] = "", found[MPI_MAX_PORT_NAME] = "";
	MPI_Comm other;
	int value = 0;
	MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
	MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
	if (rank == 0) {
		MPI_Open_port(MPI_INFO_NULL, port);
		if (MPI_Publish_name("the ocean", MPI_INFO_NULL, port) != MPI_SUCCESS)
			MPI_Abort(MPI_COMM_WORLD, 96);
	}
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank == size - 1) {
		if (MPI_Lookup_name("no such ocean", MPI_INFO_NULL, found) == MPI_SUCCESS)
			MPI_Abort(MPI_COMM_WORLD, 94);
		if (MPI_Lookup_name("the ocean", MPI_INFO_NULL, found) != MPI_SUCCESS)
			MPI_Abort(MPI_COMM_WORLD, 95);
		MPI_Comm_connect(found, MPI_INFO_NULL, 0, MPI_COMM_SELF, &other);
		value = 42;
		MPI_Send(&value, 1, MPI_INT, 0, 0, other);
		MPI_Comm_disconnect(&other);
	}
	if (rank == 0) {
		MPI_Comm_accept(port, MPI_INFO_NULL, 0, MPI_COMM_SELF, &other);
		MPI_Recv(&value, 1, MPI_INT, 0, 0, other, MPI_STATUS_IGNORE);
		MPI_Comm_disconnect(&other);
		MPI_Unpublish_name("the ocean", MPI_INFO_NULL, port);
		MPI_Close_port(port);
		printf("heard %d\n", value);
	}
	MPI_Barrier(MPI_COMM_WORLD);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "hello";
	char name[MPI_MAX_PROCESSOR_NAME];
	int length;
	if (strcmp(what, "status") == 0 && argc > 2) // without MPI
		return atoi(argv[2]);
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Get_processor_name(name, &length);
	if (strcmp(what, "hello") == 0)
		printf("rank %d of %d\n", rank, size);
	else if (strcmp(what, "ring") == 0)
		ring();
	else if (strcmp(what, "alltoall") == 0)
		alltoall(argc > 2 ? atoi(argv[2]) : 100);
	else if (strcmp(what, "spawn") == 0)
		spawn(argv[0], 2);
	else if (strcmp(what, "child") == 0)
		child();
	else if (strcmp(what, "publish") == 0)
		publish();
	else if (strcmp(what, "abort") == 0) {
		if (rank == size - 1)
			MPI_Abort(MPI_COMM_WORLD, 7);
		MPI_Barrier(MPI_COMM_WORLD);
	} else if (strcmp(what, "badsend") == 0) {
		if (rank == size - 1)
			MPI_Send(&length, 1, MPI_INT, size + 7, 0, MPI_COMM_WORLD);
		MPI_Barrier(MPI_COMM_WORLD);
	} else if (strcmp(what, "crash") == 0) {
		if (rank == size - 1)
			raise(SIGSEGV);
		MPI_Barrier(MPI_COMM_WORLD);
	} else if (strcmp(what, "leave") == 0) {
		if (rank == size - 1)
			_exit(3);
		MPI_Barrier(MPI_COMM_WORLD);
	}
	if (strcmp(what, "ring") == 0 || strcmp(what, "alltoall") == 0) {
		MPI_Barrier(MPI_COMM_WORLD);
		if (rank == 0)
			printf("%s right\n", what);
	}
	MPI_Finalize();
	return 0;
}
