/*
 * pairs: the shape of ClustalW (paper 2.1.1, figure 3): load sequences once,
 * fork, score every pair of them somewhere, and build a guide tree of the scores.
 *
 *     pairs [-n CLONES] [-hierarchical] [-serial] FILE
 *
 * It shows parallel computation (figure 2b). The sequences are read before the
 * fork, so each clone has them. Which pairs it scores follows from its id alone,
 * and the parent, whose id is 0, takes a share as well. Scores go to the parent
 * over TCP. With -hierarchical CLONES counts processors: a clone has several, and
 * forks a process for each of them.
 *
 * Prints the number of sequences and pairs, a checksum of all scores, and the
 * guide tree in Newick's notation: the same text whatever the number of clones.
 * With -serial nothing is forked at all.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sf.h"

enum { MAX_SEQUENCES = 1000, MAX_LENGTH = 10000, GAP = -4, LIMIT = 600 /* s */ };

struct sequence { char name[32]; char *text; int length; };
struct score { int32_t i, j, score; };

static struct sequence sequences[MAX_SEQUENCES];
static int count;
static int32_t *scores; /* count * count of them */

/* Sequences */

static void load(const char *file)
{
	static char line[MAX_LENGTH];
	FILE *f = fopen(file, "r");
	if (!f)
		err(1, "read %s", file);
	while (fgets(line, sizeof line, f)) {
		line[strcspn(line, "\r\n")] = 0;
		if (line[0] == '>') {
			if (count == MAX_SEQUENCES)
				errx(1, "%s has more than %d sequences", file, MAX_SEQUENCES);
			struct sequence *s = &sequences[count++];
			snprintf(s->name, sizeof s->name, "%.*s", (int)strcspn(line + 1, " "), line + 1);
			continue;
		}
		if (count == 0)
			errx(1, "%s does not begin with >NAME", file);
		struct sequence *s = &sequences[count - 1];
		int n = strlen(line);
		if (s->length + n > MAX_LENGTH)
			errx(1, "sequence %s has more than %d letters", s->name, MAX_LENGTH);
		if (!(s->text = realloc(s->text, s->length + n + 1)))
			err(1, "keep sequence %s", s->name);
		memcpy(s->text + s->length, line, n + 1);
		s->length += n;
	}
	fclose(f);
	if (count < 2)
		errx(1, "%s has %d sequences; two at least make a pair", file, count);
	if (!(scores = calloc((size_t)count * count, sizeof *scores)))
		err(1, "keep the scores");
}

/* What it is worth to have a above b: amino acids of one kind replace each other
   easily. */
static int likeness(char a, char b)
{
	static const char *const kinds[] = { "ILVM", "FWY", "KRH", "DENQ", "STAG", "C", "P" };
	if (a == b)
		return 5;
	for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
		if (strchr(kinds[k], a) && strchr(kinds[k], b))
			return 1;
	return -2;
}

/* The score of the best global alignment, by Needleman and Wunsch's recurrence,
   of which one row is kept. */
static int align(const struct sequence *a, const struct sequence *b)
{
	static int row[MAX_LENGTH + 1];
	for (int j = 0; j <= b->length; j++)
		row[j] = j * GAP;
	for (int i = 1; i <= a->length; i++) {
		int diagonal = row[0];
		row[0] = i * GAP;
		for (int j = 1; j <= b->length; j++) {
			int best = diagonal + likeness(a->text[i - 1], b->text[j - 1]);
			if (best < row[j] + GAP)
				best = row[j] + GAP;
			if (best < row[j - 1] + GAP)
				best = row[j - 1] + GAP;
			diagonal = row[j];
			row[j] = best;
		}
	}
	return row[b->length];
}

/* Every pair belongs to the worker whose number it has, of all workers' numbers.
   Scores are written to out, or kept if that is NULL. */
static void score_share(int worker, int workers, FILE *out)
{
	for (int i = 0; i < count; i++)
		for (int j = i + 1; j < count; j++) {
			if ((i * count + j) % workers != worker)
				continue;
			struct score s = { i, j, align(&sequences[i], &sequences[j]) };
			if (!out)
				scores[i * count + j] = s.score;
			else if (fwrite(&s, sizeof s, 1, out) != 1)
				err(1, "relay a score");
		}
}

/* Relaying */

static int listen_anywhere(struct sockaddr_in *at, const char *ip, int backlog)
{
	int s = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t size = sizeof *at;
	memset(at, 0, sizeof *at);
	at->sin_family = AF_INET;
	if (s < 0 || bind(s, (struct sockaddr *)at, size) < 0 || listen(s, backlog) < 0 ||
	    getsockname(s, (struct sockaddr *)at, &size) < 0)
		err(1, "listen for scores");
	/* Should a clone be lost, its scores never come. */
	struct timeval limit = { .tv_sec = LIMIT };
	if (setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0)
		err(1, "limit the wait for scores");
	if (inet_pton(AF_INET, ip, &at->sin_addr) != 1)
		errx(1, "the parent has the address %s, which is not of IPv4", ip);
	return s;
}

/* A worker's whole life. It ends when the parent has closed the connection, and so
   has everything: what is still in a buffer when a clone exits is lost. */
static void relay_share(int worker, int workers, const struct sockaddr_in *parent)
{
	int s = socket(AF_INET, SOCK_STREAM, 0);
	if (s < 0 || connect(s, (const struct sockaddr *)parent, sizeof *parent) < 0)
		err(1, "connect to the parent");
	FILE *out = fdopen(s, "w");
	if (!out)
		err(1, "connect to the parent");
	score_share(worker, workers, out);
	char end;
	if (fflush(out) != 0 || shutdown(s, SHUT_WR) < 0 || read(s, &end, 1) != 0)
		err(1, "relay the scores");
}

/* fork_workers starts the processes of one VM, as many as it has CPUs. */
static void fork_workers(int first, int cpus, int workers, const struct sockaddr_in *parent)
{
	for (int i = 0; i < cpus; i++) {
		pid_t pid = fork();
		if (pid < 0)
			err(1, "fork a worker");
		if (pid == 0) {
			relay_share(first + i, workers, parent);
			_exit(0);
		}
	}
}

/* wait_workers returns 0 if all of them did well. */
static int wait_workers(void)
{
	int status, bad = 0;
	while (wait(&status) > 0)
		bad |= status != 0;
	return bad;
}

/* collate reads what the workers of all VMs found, one after another. */
static void collate(int s, int workers)
{
	for (int i = 0; i < workers; i++) {
		int c = accept(s, NULL, NULL);
		FILE *in = c < 0 ? NULL : fdopen(c, "r");
		if (!in)
			err(1, "wait %d s for a worker", LIMIT);
		struct score r;
		while (fread(&r, sizeof r, 1, in) == 1) {
			if (r.i < 0 || r.j <= r.i || r.j >= count)
				errx(1, "a worker scored the pair %d, %d, which there is not", r.i, r.j);
			scores[r.i * count + r.j] = r.score;
		}
		fclose(in);
	}
}

/* The fork */

static void score_in_clones(int n, int hierarchical)
{
	struct sockaddr_in parent;
	sf_identity self;
	sf_ticket ticket;
	if (sf_whoami(&self) < 0 || sf_request_ticket(n, hierarchical, &ticket) < 0)
		errx(1, "%s", sf_errmsg());

	/* Workers are numbered through: those of the parent, of clone 1, and so on. */
	int first[ticket.granted + 1], cpus[ticket.granted + 1], workers = 0;
	for (int id = 0; id <= ticket.granted; id++) {
		first[id] = workers;
		cpus[id] = !hierarchical ? 1 : id == 0 ? self.vcpus : ticket.clones[id - 1].vcpus;
		workers += cpus[id];
	}
	int s = listen_anywhere(&parent, self.ip, workers);

	int id = sf_clone(&ticket);
	if (id < 0)
		errx(1, "%s", sf_errmsg());
	fork_workers(first[id], cpus[id], workers, &parent);
	if (id > 0) {
		sf_exit(wait_workers());
		errx(1, "%s", sf_errmsg());
	}
	collate(s, workers);
	int statuses[ticket.granted];
	if (sf_join(&ticket, LIMIT, statuses) < 0)
		errx(1, "%s", sf_errmsg());
	for (int i = 0; i < ticket.granted; i++)
		if (statuses[i] != 0)
			errx(1, "clone %d ended with status %d", ticket.clones[i].id, statuses[i]);
	if (wait_workers() != 0)
		errx(1, "a worker of the parent failed");
	fprintf(stderr, "pairs: scored by %d workers in %d clones and the parent\n", workers, ticket.granted);
	sf_ticket_free(&ticket);
	close(s);
}

/* The guide tree */

static uint64_t checksum(void)
{
	uint64_t sum = 14695981039346656037u; /* FNV-1a */
	for (int i = 0; i < count; i++)
		for (int j = i + 1; j < count; j++)
			for (int b = 0; b < 32; b += 8)
				sum = (sum ^ ((uint32_t)scores[i * count + j] >> b & 255)) * 1099511628211u;
	return sum;
}

/* Always the two closest groups become one, whose likeness to the others is the
   mean of theirs, weighted by size (UPGMA). */
static char *guide_tree(void)
{
	static char *name[MAX_SEQUENCES];
	int size[count];
	double *like = malloc(sizeof *like * count * count);
	if (!like)
		err(1, "build the guide tree");
	for (int i = 0; i < count; i++) {
		if (!(name[i] = strdup(sequences[i].name)))
			err(1, "build the guide tree");
		size[i] = 1;
		for (int j = i + 1; j < count; j++) {
			int longer = sequences[i].length > sequences[j].length ? sequences[i].length : sequences[j].length;
			like[i * count + j] = like[j * count + i] = (double)scores[i * count + j] / longer;
		}
	}
	for (int left = count; left > 1; left--) {
		int a = -1, b = -1;
		for (int i = 0; i < count; i++)
			for (int j = i + 1; j < count; j++)
				if (size[i] && size[j] && (a < 0 || like[i * count + j] > like[a * count + b]))
					a = i, b = j;
		char *joined;
		if (asprintf(&joined, "(%s,%s)", name[a], name[b]) < 0)
			err(1, "build the guide tree");
		free(name[a]);
		free(name[b]);
		name[a] = joined;
		for (int k = 0; k < count; k++)
			like[a * count + k] = like[k * count + a] =
			    (like[a * count + k] * size[a] + like[b * count + k] * size[b]) / (size[a] + size[b]);
		size[a] += size[b];
		size[b] = 0;
	}
	free(like);
	return name[0];
}

int main(int argc, char **argv)
{
	int n = 4, hierarchical = 0, serial = 0;
	const char *file = NULL;
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "-n") == 0 && i + 1 < argc)
			n = atoi(argv[++i]);
		else if (strcmp(argv[i], "-hierarchical") == 0)
			hierarchical = 1;
		else if (strcmp(argv[i], "-serial") == 0)
			serial = 1;
		else if (argv[i][0] != '-' && !file)
			file = argv[i];
		else
			file = NULL, i = argc;
	}
	if (!file || n < 1)
		errx(2, "usage: pairs [-n CLONES] [-hierarchical] [-serial] FILE");

	load(file);
	if (serial)
		score_share(0, 1, NULL);
	else
		score_in_clones(n, hierarchical);
	printf("%d sequences, %d pairs, checksum %016llx\n%s;\n",
	       count, count * (count - 1) / 2, (unsigned long long)checksum(), guide_tree());
	return 0;
}
