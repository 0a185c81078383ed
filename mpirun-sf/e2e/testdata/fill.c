/*
 * fill: writes megabytes to a file of the clone's own disk, of which no two blocks
 * are alike, and says whether the disk has taken them.
 *
 *     fill FILE MEGABYTES
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	unsigned long long x = 88172645463325252ull + getpid();
	static unsigned long long block[1 << 17]; /* a megabyte */
	int fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	int bad = fd < 0;

	printf("filling\n");
	fflush(stdout);
	for (int i = atoi(argv[2]); i > 0 && !bad; i--) {
		for (int k = 0; k < 1 << 17; k++) {
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			block[k] = x;
		}
		bad = write(fd, block, sizeof block) != sizeof block || fsync(fd) < 0;
	}
	if (bad)
		printf("not filled: %s\n", strerror(errno));
	else
		printf("filled\n");
	return bad;
}
