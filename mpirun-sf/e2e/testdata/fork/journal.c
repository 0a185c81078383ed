/*
 * journal FILE FORKS: a thread writes numbered records into FILE and syncs them
 * while the machine is forked. What memory says was synced has to be on the
 * disk, in the parent and in each clone, and nothing that memory does not know
 * of: both belong to one instant. The disk is read from its device, past the
 * page cache.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "sf.h"

#define RECORDS (1 << 15)
#define SIZE 512
#define FILE_SIZE ((off_t)RECORDS * SIZE)
#define EACH 16 /* records between two syncs */
#define EXTENTS 64

struct record {
	uint64_t number; /* from 1; 0: never written */
	uint64_t sum;
	char filler[SIZE - 16];
};

static _Atomic uint64_t begun, written, synced;
static _Atomic uint64_t share; /* of the file, up to the end of the next fork */
static _Atomic int stop;
static int file;
static struct fiemap *map;

static uint64_t checksum(const struct record *r)
{
	uint64_t h = r->number + 14695981039346656037u;

	for (size_t i = 0; i < sizeof r->filler; i++)
		h = (h ^ (unsigned char)r->filler[i]) * 1099511628211u;
	return h;
}

static void *write_journal(void *unused)
{
	struct record r;
	useconds_t pause = 4000;

	for (uint64_t n = 1; n <= RECORDS && !stop; n++) {
		r.number = n;
		memset(r.filler, (int)(n % 251), sizeof r.filler);
		r.sum = checksum(&r);
		begun = n;
		if (pwrite(file, &r, SIZE, (off_t)(n - 1) * SIZE) != SIZE)
			abort();
		written = n;
		if (n % EACH)
			continue;
		if (fdatasync(file))
			abort();
		synced = n;
		/* A fork that takes long, on a busy machine, leaves the next ones their share. */
		pause = n <= share ? 4000 : pause < 256000 ? 2 * pause : pause;
		usleep(pause);
	}
	return unused;
}

/* read_disk reads the file's blocks from the device that they are on. */
static char *read_disk(void)
{
	char *content;
	int disk = open("/dev/vda", O_RDONLY | O_DIRECT);

	if (disk < 0 || posix_memalign((void **)&content, 4096, FILE_SIZE))
		return NULL;
	memset(content, 0, FILE_SIZE);
	for (unsigned i = 0; i < map->fm_mapped_extents; i++) {
		struct fiemap_extent *e = &map->fm_extents[i];
		size_t done = 0;

		while (done < e->fe_length) {
			ssize_t n = pread(disk, content + e->fe_logical + done, e->fe_length - done, e->fe_physical + done);
			if (n <= 0)
				return NULL;
			done += n;
		}
	}
	close(disk);
	return content;
}

/*
 * check compares disk and memory in a machine that goes on writing: what was
 * synced before the disk was read is there, what was not begun afterwards is not.
 */
static int check(const char *who)
{
	uint64_t before = synced, seen = written, after;
	struct record cached;
	const struct record *r;
	char *disk = read_disk();

	if (!disk) {
		printf("%s: the disk cannot be read\n", who);
		return 90;
	}
	after = begun;
	for (uint64_t n = 1; n <= RECORDS; n++) {
		r = (const void *)(disk + (n - 1) * SIZE);
		if (r->number == 0 && n <= before) {
			printf("%s: record %llu is not on the disk, and memory says that %llu are synced\n", who,
			       (unsigned long long)n, (unsigned long long)before);
			return 91;
		}
		if (r->number != 0 && n > after) {
			printf("%s: record %llu is on the disk, and memory knows of %llu\n", who, (unsigned long long)n, (unsigned long long)after);
			return 92;
		}
		if (r->number != 0 && (r->number != n || r->sum != checksum(r))) {
			printf("%s: record %llu is not whole on the disk\n", who, (unsigned long long)n);
			return 93;
		}
		if (n <= seen && (pread(file, &cached, SIZE, (off_t)(n - 1) * SIZE) != SIZE || cached.number != n || cached.sum != checksum(&cached))) {
			printf("%s: record %llu cannot be read from the file, and memory says that it was written\n", who, (unsigned long long)n);
			return 94;
		}
	}
	free(disk);
	return 0;
}

static void fail(const char *what)
{
	printf("%s: %s\n", what, sf_errmsg());
	exit(1);
}

/* prepare writes and maps the whole file, so that from here on its blocks stay where they are. */
static void prepare(const char *path)
{
	static char zeros[1 << 20];

	if ((file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600)) < 0)
		fail("open");
	for (off_t at = 0; at < FILE_SIZE; at += sizeof zeros)
		if (pwrite(file, zeros, sizeof zeros, at) != sizeof zeros)
			fail("write");
	if (fsync(file))
		fail("fsync");
	map = calloc(1, sizeof *map + EXTENTS * sizeof map->fm_extents[0]);
	map->fm_length = FILE_SIZE;
	map->fm_extent_count = EXTENTS;
	if (ioctl(file, FS_IOC_FIEMAP, map) || map->fm_mapped_extents == EXTENTS)
		fail("fiemap");
}

int main(int argc, char **argv)
{
	pthread_t writer;
	int forks = atoi(argv[argc - 1]), status;
	uint64_t last = 0;

	prepare(argv[1]);
	share = RECORDS / (forks + 1);
	pthread_create(&writer, NULL, write_journal, NULL);
	for (int i = 0; i < forks; i++) {
		int statuses[2], id;
		sf_ticket t;

		while (written < last + 8 * EACH && written < RECORDS)
			usleep(1000);
		last = written;
		share = RECORDS / (forks + 1) * (i + 1);
		if (sf_request_ticket(1 + i % 2, 0, &t) < 0 || (id = sf_clone(&t)) < 0)
			fail("fork");
		status = check(id ? "a clone" : "the parent");
		if (id > 0) {
			FILE *f;

			/* And once more without what the page cache remembers. */
			stop = 1;
			pthread_join(writer, NULL);
			sync();
			if ((f = fopen("/proc/sys/vm/drop_caches", "w"))) {
				fputs("3", f);
				fclose(f);
			}
			synced = written;
			if (!status)
				status = check("a clone, synced");
			sf_exit(status);
		}
		if (status)
			return 1;
		if (sf_join(&t, 120, statuses) < 0)
			fail("join");
		for (int k = 0; k < t.granted; k++)
			if (statuses[k]) {
				printf("fork %d, clone %d: status %d\n", i + 1, k + 1, statuses[k]);
				return 1;
			}
	}
	stop = 1;
	pthread_join(writer, NULL);
	if (fdatasync(file))
		fail("fdatasync");
	synced = written;
	if (check("the parent, at last"))
		return 1;
	if (written == RECORDS) {
		printf("the file was too small: forks were not beside writes\n");
		return 1;
	}
	printf("journal: ok, %llu records\n", (unsigned long long)written);
	return 0;
}
