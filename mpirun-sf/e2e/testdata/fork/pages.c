/*
 * pages MB: fills memory with a pattern, forks, and has parent and clones check
 * it, change it each in its own way, and fork again. No copy may see another's.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "sf.h"

#define WORDS (4096 / sizeof(uint64_t))

static uint64_t *memory;
static size_t pages;

static uint64_t word(uint64_t author, size_t page, size_t i)
{
	uint64_t x = author << 48 ^ page << 16 ^ i;

	x *= 0x9e3779b97f4a7c15u;
	return x ^ x >> 29;
}

/* write makes the pages first, first + step, ... the author's. */
static void write_pages(uint64_t author, size_t first, size_t step)
{
	for (size_t p = first; p < pages; p += step)
		for (size_t i = 0; i < WORDS; i++)
			memory[p * WORDS + i] = word(author, p, i);
}

/* check exits if these pages are not the author's: with 1 in the parent and at once. */
static void check(const char *who, uint64_t author, size_t first, size_t step)
{
	for (size_t p = first; p < pages; p += step)
		for (size_t i = 0; i < WORDS; i++)
			if (memory[p * WORDS + i] != word(author, p, i)) {
				printf("%s: word %zu of page %zu is not that of author %llu\n", who, i, p, (unsigned long long)author);
				fflush(stdout);
				sf_exit(90);
				exit(1);
			}
}

static void fail(const char *what)
{
	printf("%s: %s\n", what, sf_errmsg());
	sf_exit(91);
	exit(1);
}

static int fork_vm(sf_ticket *t, int n)
{
	int id;

	if (sf_request_ticket(n, 0, t) < 0)
		fail("request-ticket");
	if (t->granted != n)
		fail("granted");
	if ((id = sf_clone(t)) < 0)
		fail("clone");
	return id;
}

static void join(sf_ticket *t, int want)
{
	int statuses[8];

	if (sf_join(t, 120, statuses) < 0)
		fail("join");
	for (int i = 0; i < t->granted; i++)
		if (statuses[i] != want) {
			printf("clone %d: status %d, want %d\n", t->clones[i].id, statuses[i], want);
			sf_exit(statuses[i]);
			exit(1);
		}
}

int main(int argc, char **argv)
{
	sf_ticket first, second, third;
	int id;

	(void)argc;
	pages = strtoul(argv[1], NULL, 10) << 8;
	if (posix_memalign((void **)&memory, 4096, pages * 4096))
		return 1;
	write_pages(100, 0, 1);
	id = fork_vm(&first, 2);
	check("after the first fork", 100, 0, 1);
	write_pages(200 + id, id, 3); /* a third of them, another in each */
	if (id > 0) {
		/* This generation lives while the parent makes the next, and forks as well. */
		int grandchild = fork_vm(&second, 1);

		for (int r = 0; r < 3; r++)
			check("mine, after my own fork", r == id ? 200 + id : 100, r, 3);
		write_pages(300 + grandchild, 0, 2);
		check("mine, after I wrote again", 300 + grandchild, 0, 2);
		if (grandchild > 0)
			sf_exit(7);
		join(&second, 7);
		check("mine, after my child", 300, 0, 2);
		sf_exit(8);
	}
	id = fork_vm(&third, 2);
	for (int r = 0; r < 3; r++)
		check("after the second fork", r == 0 ? 200 : 100, r, 3);
	write_pages(400 + id, 0, 1);
	sleep(1);
	check("what each has made of all", 400 + id, 0, 1);
	if (id > 0)
		sf_exit(9);
	join(&third, 9);
	join(&first, 8);
	check("the parent's, at last", 400, 0, 1);
	printf("pages: ok\n");
	return 0;
}
