/*
 * nompi: a program that never calls MPI_Init, one copy per rank.
 *
 *     mpirun-sf -np 4 bin/examples/nompi
 *
 * It is not linked with MPI at all. Such a program is run all the same; it
 * can learn its rank from the environment.
 *
 * Prints, per rank:  no MPI here: HOST, PMI_RANK R of PMI_SIZE N
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *environment(const char *name)
{
	const char *value = getenv(name);
	return value ? value : "(unset)";
}

int main(void)
{
	char host[256] = "";
	gethostname(host, sizeof host - 1);
	printf("no MPI here: %s, PMI_RANK %s of PMI_SIZE %s\n",
	       host, environment("PMI_RANK"), environment("PMI_SIZE"));
	return 0;
}
