/*
 * files: every rank writes a file of its own in the working directory, and all
 * of them read one input file.
 *
 *     mpirun-sf -np 4 bin/examples/files [INPUT]
 *
 * The working directory is the host's, mounted in every clone at the same
 * path: out.0, out.1, ... are on the host when the job ends, owned by the user
 * who started it. INPUT is any file in the working directory or under --share.
 *
 * Prints, per rank:  rank R of N wrote out.R in DIRECTORY
 * and, with INPUT:   rank R of N read B bytes of INPUT, checksum C
 * Exit status 1 when a file cannot be written or read.
 */
#include <errno.h>
#include <limits.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int failed(int rank, const char *what, const char *name)
{
	fprintf(stderr, "files: rank %d: %s %s: %s\n", rank, what, name, strerror(errno));
	return 1;
}

/* write_own makes out.RANK and reads it back, as a checkpointing program would. */
static int write_own(int rank, int size)
{
	char name[32], line[128], again[128] = "", directory[PATH_MAX];
	if (!getcwd(directory, sizeof directory))
		return failed(rank, "find", "the working directory");
	snprintf(name, sizeof name, "out.%d", rank);
	snprintf(line, sizeof line, "written by rank %d of %d\n", rank, size);

	FILE *f = fopen(name, "w");
	if (!f)
		return failed(rank, "create", name);
	/* fclose too: a full disk often shows only there. */
	int bad = fputs(line, f) == EOF;
	if (fclose(f) == EOF || bad)
		return failed(rank, "write", name);

	f = fopen(name, "r");
	if (!f)
		return failed(rank, "open", name);
	if (!fgets(again, sizeof again, f) || strcmp(line, again) != 0) {
		fprintf(stderr, "files: rank %d: %s holds something else than was written\n", rank, name);
		fclose(f);
		return 1;
	}
	fclose(f);
	printf("rank %d of %d wrote %s in %s\n", rank, size, name, directory);
	return 0;
}

static int read_shared(int rank, int size, const char *name)
{
	FILE *f = fopen(name, "r");
	if (!f)
		return failed(rank, "open", name);
	unsigned char buffer[65536];
	size_t n, bytes = 0;
	uint64_t sum = 14695981039346656037u; /* FNV-1a */
	while ((n = fread(buffer, 1, sizeof buffer, f)) > 0) {
		bytes += n;
		for (size_t i = 0; i < n; i++)
			sum = (sum ^ buffer[i]) * 1099511628211u;
	}
	if (ferror(f)) {
		fclose(f);
		return failed(rank, "read", name);
	}
	fclose(f);
	printf("rank %d of %d read %zu bytes of %s, checksum %016llx\n",
	       rank, size, bytes, name, (unsigned long long)sum);
	return 0;
}

int main(int argc, char **argv)
{
	MPI_Init(&argc, &argv);
	int rank, size;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);

	int bad = write_own(rank, size);
	if (argc > 1)
		bad |= read_shared(rank, size, argv[1]);
	MPI_Finalize();
	return bad;
}
