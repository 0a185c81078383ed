/*
 * Calls every function of sf.h and prints what it gave, in the format that all
 * exercises share.
 *
 *     exercise calls       once each
 *     exercise garbage N   N times sf_whoami, the outcome of each
 *     exercise signals N   the same, with a signal each millisecond
 *     exercise fuzz N      N rounds of everything, whatever is answered
 */
#define _DEFAULT_SOURCE
#include <sf.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

static void show_error(const char *call, int code)
{
	printf("%s: %s [%s]\n", call, sf_kind(code), sf_errmsg());
}

static int show(const char *call, int result)
{
	if (result < 0)
		show_error(call, result);
	else
		printf("%s: ok\n", call);
	return result;
}

static void show_id(const char *call, int result)
{
	if (result < 0)
		show_error(call, result);
	else
		printf("%s: %d\n", call, result);
}

static void show_ticket(int result, const sf_ticket *t)
{
	int i;

	if (result < 0) {
		show_error("ticket", result);
		return;
	}
	printf("ticket: [%s] [%s] %d %d\n", t->id, t->vm, t->asked, t->granted);
	for (i = 0; i < t->granted; i++)
		printf("  %d %s %s %d [%s]\n", t->clones[i].id, t->clones[i].name, t->clones[i].ip, t->clones[i].vcpus,
		       t->clones[i].host);
}

static void calls(void)
{
	static const char *const kinds[] = {"invalid", "unknown", "refused", "state",  "resources", "failed",      "lost",
					    "timeout", "killed",  "cloned",  "version", "unavailable", "novel"};
	sf_identity me;
	sf_ticket t, other;
	sf_vm vms[8];
	char checkpoint[SF_ID_SIZE], ticket[SF_ID_SIZE];
	int i, id, count, statuses[2];
	size_t k;

	if (sf_whoami(&me) == 0)
		printf("whoami: %d %d %s %s %d [%s] [%s]\n", me.id, me.member, me.name, me.ip, me.vcpus, me.host, me.ticket);
	show_ticket(sf_request_ticket(3, 0, &t), &t);
	show_ticket(sf_request_ticket_vm("web 1%", 4, 1, 2, &other), &other);
	show_id("clone", sf_clone(&t));
	show_id("clone", sf_clone(&other));
	sf_ticket_free(&other);
	show_ticket(sf_get_ticket("t 1", &other), &other);
	sf_ticket_free(&other);
	for (i = 0; i < 2; i++) {
		id = sf_checkpoint_parent(checkpoint, ticket);
		printf("checkpoint: [%s] %d [%s]\n", checkpoint, id, ticket);
	}
	show("create-clones", sf_create_clones(checkpoint, &t));
	show("discard", sf_discard(checkpoint));
	show("exit", sf_exit(3));
	show("exit", sf_exit_vm("web 1%", 4));
	if (sf_join(&t, -1, statuses) == 0)
		printf("join: %d:%d %d:%d\n", t.clones[0].id, statuses[0], t.clones[1].id, statuses[1]);
	show("join", sf_join(&t, 2.5, NULL));
	show("join", sf_join(&t, 0, statuses));
	printf("lost: 1:%d 2:%d\n", statuses[0], statuses[1]);
	show("kill", sf_kill_clone(&t, 2));
	show("kill", sf_kill(&t));
	id = sf_await_fork(ticket);
	printf("await-fork: %d [%s]\n", id, ticket);
	count = sf_list_vms(vms, 8);
	for (i = 0; i < count; i++)
		printf("  %s %d %s %d [%s] %d\n", vms[i].name, vms[i].member, vms[i].ip, vms[i].parent, vms[i].ticket, vms[i].id);
	for (k = 0; k < sizeof kinds / sizeof kinds[0]; k++)
		show_ticket(sf_get_ticket(kinds[k], &other), &other);
	sf_ticket_free(&t);
}

static void garbage(int times)
{
	sf_identity me;

	for (; times > 0; times--)
		printf("%s\n", sf_kind(sf_whoami(&me)));
}

static volatile sig_atomic_t caught;

static void count(int signal)
{
	(void)signal;
	caught++;
}

static void signals(int times)
{
	struct sigaction action = {.sa_handler = count}; /* without SA_RESTART */
	struct itimerval each = {{0, 1000}, {0, 1000}};

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &each, NULL);
	garbage(times);
	printf("%s\n", caught > 10 ? "signals" : "few signals");
}

/* What comes back as a ticket is used for the next call, as a program would. */
static void fuzz(int times)
{
	sf_identity me;
	sf_vm vms[2];
	char checkpoint[SF_ID_SIZE], ticket[SF_ID_SIZE];

	for (; times > 0; times--) {
		sf_ticket t, other;
		int *statuses, granted = 0;

		sf_whoami(&me);
		if (sf_request_ticket(2, 1, &t) == 0)
			granted = t.granted;
		else
			strcpy(t.id, "t");
		statuses = calloc((size_t)granted + 1, sizeof *statuses);
		if (!statuses)
			abort();
		sf_clone(&t);
		sf_get_ticket(t.id, &other);
		sf_checkpoint_parent(checkpoint, times % 2 ? ticket : NULL);
		sf_create_clones("c", &t);
		sf_discard(checkpoint);
		sf_exit(1);
		sf_join(&t, 0.001, statuses);
		sf_kill(&t);
		sf_kill_clone(&t, 1);
		sf_await_fork(times % 2 ? ticket : NULL);
		sf_list_vms(vms, 2);
		free(statuses);
		sf_ticket_free(&t);
		sf_ticket_free(&other);
	}
	printf("fuzz: ok\n");
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "calls"))
		calls();
	else if (argc == 3 && !strcmp(argv[1], "garbage"))
		garbage(atoi(argv[2]));
	else if (argc == 3 && !strcmp(argv[1], "signals"))
		signals(atoi(argv[2]));
	else if (argc == 3 && !strcmp(argv[1], "fuzz"))
		fuzz(atoi(argv[2]));
	else
		return 2;
	return 0;
}
