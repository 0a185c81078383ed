/*
 * pi: the integral of 4/(1+x*x) from 0 to 1, by the midpoint rule.
 *
 *     mpirun-sf -np 4 bin/examples/pi [INTERVALS]     default: 1000000
 *
 * All computation, one number to communicate: the time goes up in proportion
 * to INTERVALS and down with the number of ranks that have a core each.
 *
 * Prints, on rank 0:  pi is approximately P, error E
 * Exit status 1 when the error is larger than the method's.
 */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static const double PI = 3.14159265358979323846;

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	int rank, size;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);

	long long intervals = argc > 1 ? atoll(argv[1]) : 1000000;
	if (intervals < 1) {
		if (rank == 0)
			fprintf(stderr, "pi: the number of intervals must be at least 1\n");
		MPI_Finalize();
		return 2;
	}

	double width = 1.0 / intervals, sum = 0;
	for (long long i = rank; i < intervals; i += size) {
		double x = width * (i + 0.5);
		sum += 4.0 / (1.0 + x * x);
	}

	double part = width * sum, pi = 0;
	MPI_Reduce(&part, &pi, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);

	int bad = 0;
	if (rank == 0) {
		double error = fabs(pi - PI);
		printf("pi is approximately %.16f, error %.1e\n", pi, error);
		/* The midpoint rule errs by width squared over 12; the rest is rounding. */
		bad = error > width * width + 1e-9;
	}
	MPI_Finalize();
	return bad;
}
