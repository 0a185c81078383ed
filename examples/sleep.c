/*
 * sleep: every rank sleeps, and tells of each signal that it gets.
 *
 *     mpirun-sf -np 2 bin/examples/sleep [SECONDS]    default: 10
 *
 * Send the launcher SIGINT, SIGTERM or SIGQUIT meanwhile: it hands them on to
 * the ranks. These only report the signal (SIGUSR1 too) and sleep on, so a
 * second Ctrl-C shows how the launcher ends a job that does not listen.
 *
 * Prints, per rank:  rank R of N sleeps S seconds
 *                    rank R of N got SIGNAL           for each signal
 *                    rank R of N woke up
 */
#define _GNU_SOURCE /* sigabbrev_np */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int main(int argc, char **argv)
{
	/* Blocked and then waited for: nothing has to be done in a handler. Before MPI_Init, for
	   the threads that it starts inherit what is blocked, and would be killed otherwise. */
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGQUIT);
	sigaddset(&signals, SIGUSR1);
	sigprocmask(SIG_BLOCK, &signals, NULL);

	MPI_Init(&argc, &argv);
	int rank, size;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	int seconds = argc > 1 ? atoi(argv[1]) : 10;

	printf("rank %d of %d sleeps %d seconds\n", rank, size, seconds);
	fflush(stdout);

	double end = MPI_Wtime() + seconds, left;
	while ((left = end - MPI_Wtime()) > 0) {
		struct timespec wait = {(time_t)left, (long)((left - (time_t)left) * 1e9)};
		int sig = sigtimedwait(&signals, NULL, &wait);
		if (sig > 0) {
			printf("rank %d of %d got SIG%s\n", rank, size, sigabbrev_np(sig));
			fflush(stdout);
		}
	}

	printf("rank %d of %d woke up\n", rank, size);
	MPI_Finalize();
	return 0;
}
