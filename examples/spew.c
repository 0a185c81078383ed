/*
 * spew: all ranks write many long lines to stdout and stderr at once.
 *
 *     mpirun-sf -np 4 bin/examples/spew [LINES [LENGTH]]    default: 200 lines of 1000
 *
 * Every line tells what it must look like, so that a reader can see whether
 * one was torn or mixed with another's:
 *
 *     STREAM RANK NUMBER LENGTH xxxx...x.
 *
 * where STREAM is out or err, NUMBER counts from 0 on each rank and stream, and
 * LENGTH is the number of x. Each line leaves in two or more pieces on purpose:
 * to put lines together again is the launcher's work, not the program's. The
 * last line on stdout has no newline at its end.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* put writes all of it, in pieces of at most `piece` bytes. */
static void put(int fd, const char *text, size_t length, size_t piece)
{
	while (length > 0) {
		ssize_t n = write(fd, text, length < piece ? length : piece);
		if (n < 0)
			exit(1);
		text += n;
		length -= n;
	}
}

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	int rank;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	int lines = argc > 1 ? atoi(argv[1]) : 200;
	int length = argc > 2 ? atoi(argv[2]) : 1000;

	char *line = malloc(length + 100);
	if (!line)
		MPI_Abort(MPI_COMM_WORLD, 2);

	MPI_Barrier(MPI_COMM_WORLD); /* all of them at once */
	for (int i = 0; i < lines; i++) {
		for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) {
			int n = sprintf(line, "%s %d %d %d ", fd == STDOUT_FILENO ? "out" : "err",
					rank, i, length);
			memset(line + n, 'x', length);
			n += length;
			line[n++] = '.';
			if (fd == STDERR_FILENO || i < lines - 1)
				line[n++] = '\n';
			put(fd, line, n, n / 2 + 1);
		}
	}
	free(line);
	MPI_Finalize();
	return 0;
}
