/*
 * The VM fork API by fork(2), for tests without a VM: "replacing VM forking with
 * process forking yields an equivalent parallel program confined to executing
 * within a single machine" (paper 2.1.1). $FAKE_SLOTS is how many clones there
 * are to be had, $FAKE_VCPUS how many virtual CPUs each VM has.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sf.h"

static pid_t *pids;
static int self, ticket_vcpus = 1;
static const char *message = "";

static int number(const char *name, int otherwise)
{
	const char *v = getenv(name);
	return v ? atoi(v) : otherwise;
}

const char *sf_errmsg(void) { return message; }

int sf_whoami(sf_identity *who)
{
	*who = (sf_identity){ .id = self, .vcpus = self ? ticket_vcpus : number("FAKE_VCPUS", 1), .name = "fake", .ip = "127.0.0.1" };
	return 0;
}

int sf_request_ticket(int n, int hierarchical, sf_ticket *t)
{
	int vcpus = hierarchical ? number("FAKE_VCPUS", 1) : 1, slots = number("FAKE_SLOTS", 100);
	int left = n;
	*t = (sf_ticket){ .id = "t1", .asked = n };
	if (slots == 0) {
		message = "no room for a clone";
		return SF_ERESOURCES;
	}
	t->clones = calloc(n, sizeof *t->clones);
	pids = calloc(n, sizeof *pids);
	while (left > 0 && t->granted < slots) {
		int cpus = left < vcpus ? left : vcpus;
		t->clones[t->granted] = (sf_clone_info){ .id = t->granted + 1, .vcpus = cpus, .ip = "127.0.0.1" };
		t->granted++;
		left -= cpus;
	}
	return 0;
}

void sf_ticket_free(sf_ticket *t) { free(t->clones); }

int sf_clone(const sf_ticket *t)
{
	for (int i = 0; i < t->granted; i++) {
		pids[i] = fork();
		if (pids[i] == 0)
			return self = i + 1;
	}
	return 0;
}

int sf_exit(int status) { _exit(status); }

int sf_join(const sf_ticket *t, double timeout, int *statuses)
{
	(void)timeout;
	for (int i = 0; i < t->granted; i++) {
		int status;
		if (waitpid(pids[i], &status, 0) < 0 || !WIFEXITED(status)) {
			message = "a clone was lost";
			return SF_ELOST;
		}
		statuses[i] = WEXITSTATUS(status);
	}
	return 0;
}
