/*
 * The conformance program in C; see ../README.md. Run it in a virtual machine
 * that may fork: it prints one line for each step, and the last is
 * "conformance: ok". Where something differs it says what and exits with 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <sf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PATIENCE = 120, LINE_SIZE = 128 }; /* seconds, bytes */

static struct sockaddr_in parent; /* where the children dial */

static void expect(const char *step, const char *got, const char *want)
{
	if (strcmp(got, want) != 0) {
		printf("conformance: %s: got %s, want %s\n", step, got, want);
		exit(1);
	}
	printf("%s: %s\n", step, got);
}

/* result as text: what it is if it succeeded, and otherwise the kind. */
static void expect_result(const char *step, int result, const char *want)
{
	expect(step, result < 0 ? sf_kind(result) : "ok", want);
}

static int must(const char *what, int result)
{
	if (result < 0) {
		printf("conformance: %s: %s\n", what, result == -1 ? "failed" : sf_errmsg());
		exit(1);
	}
	return result;
}

/* What a clone does: tells the parent what it saw, and ends when that has arrived. */
static void child(int id, int saw, int status)
{
	struct timeval patience = {.tv_sec = PATIENCE};
	char line[LINE_SIZE];
	int length = snprintf(line, sizeof line, "child %d saw %d\n", id, saw);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (connect(fd, (struct sockaddr *)&parent, sizeof parent) < 0 || write(fd, line, (size_t)length) != length ||
	    shutdown(fd, SHUT_WR) < 0 || read(fd, line, 1) != 0)
		status = 100;
	sf_exit(status);
	exit(1);
}

/* One child's line, without its LF. */
static void hear(int listener, char line[LINE_SIZE])
{
	struct pollfd ready = {.fd = listener, .events = POLLIN};
	struct timeval patience = {.tv_sec = PATIENCE};
	size_t length = 0;
	ssize_t n;
	int fd;

	if (poll(&ready, 1, PATIENCE * 1000) != 1) {
		printf("conformance: no child has called within %d s\n", PATIENCE);
		exit(1);
	}
	fd = must("accept", accept(listener, NULL, NULL));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	while (length < LINE_SIZE - 1 && (n = read(fd, line + length, LINE_SIZE - 1 - length)) > 0)
		length += (size_t)n;
	line[length] = 0;
	line[strcspn(line, "\n")] = 0;
	close(fd);
}

static int by_text(const void *a, const void *b)
{
	return strcmp(a, b);
}

int main(void)
{
	sf_identity me;
	sf_ticket ticket;
	char text[LINE_SIZE], lines[2][LINE_SIZE], checkpoint[SF_ID_SIZE];
	volatile int value = 42; /* so that the memory is asked, and no register */
	int id, statuses[2];
	int listener = must("socket", socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	socklen_t size = sizeof parent;

	setvbuf(stdout, NULL, _IOLBF, 0);
	must("whoami", sf_whoami(&me));
	snprintf(text, sizeof text, "id %d", me.id);
	expect("whoami", text, "id 0");

	parent.sin_family = AF_INET;
	must("bind", bind(listener, (struct sockaddr *)&parent, sizeof parent));
	must("listen", listen(listener, 16));
	must("getsockname", getsockname(listener, (struct sockaddr *)&parent, &size));
	must("address", inet_pton(AF_INET, me.ip, &parent.sin_addr) - 1);

	must("request-ticket", sf_request_ticket(2, 0, &ticket));
	if (ticket.granted != 2)
		expect("ticket", "another number of clones", "2");
	snprintf(text, sizeof text, "granted %d, ids %d %d, %d addresses", ticket.granted, ticket.clones[0].id,
		 ticket.clones[1].id, strcmp(ticket.clones[0].ip, ticket.clones[1].ip) ? 2 : 1);
	expect("ticket", text, "granted 2, ids 1 2, 2 addresses");

	id = must("clone", sf_clone(&ticket));
	if (id > 0)
		child(id, value, id);
	hear(listener, lines[0]);
	hear(listener, lines[1]);
	qsort(lines, 2, sizeof lines[0], by_text);
	expect("clone", lines[0], "child 1 saw 42");
	expect("clone", lines[1], "child 2 saw 42");
	must("join", sf_join(&ticket, PATIENCE, statuses));
	snprintf(text, sizeof text, "%d:%d %d:%d", ticket.clones[0].id, statuses[0], ticket.clones[1].id, statuses[1]);
	expect("join", text, "1:1 2:2");
	expect_result("join again", sf_join(&ticket, PATIENCE, statuses), "unknown");
	expect_result("clone after join", sf_clone(&ticket), "unknown");
	sf_ticket_free(&ticket);

	expect_result("exit in the parent", sf_exit(0), "refused");

	must("request-ticket", sf_request_ticket(1, 0, &ticket));
	if (must("clone", sf_clone(&ticket)) > 0)
		for (;;)
			pause();
	expect_result("kill", sf_kill(&ticket), "ok");
	expect_result("join after kill", sf_join(&ticket, PATIENCE, statuses), "unknown");
	sf_ticket_free(&ticket);

	value = 7;
	id = must("checkpoint-parent", sf_checkpoint_parent(checkpoint, NULL));
	if (id > 0)
		child(id, value, 0);
	value = 8;
	must("request-ticket", sf_request_ticket(1, 0, &ticket));
	must("create-clones", sf_create_clones(checkpoint, &ticket));
	hear(listener, lines[0]);
	expect("create-clones", lines[0], "child 1 saw 7");
	must("join", sf_join(&ticket, PATIENCE, statuses));
	snprintf(text, sizeof text, "%d:%d", ticket.clones[0].id, statuses[0]);
	expect("join", text, "1:0");
	sf_ticket_free(&ticket);

	must("discard", sf_discard(checkpoint));
	must("request-ticket", sf_request_ticket(1, 0, &ticket));
	expect_result("create-clones after discard", sf_create_clones(checkpoint, &ticket), "unknown");
	must("kill", sf_kill(&ticket));
	sf_ticket_free(&ticket);
	printf("conformance: ok\n");
	return value == 8 ? 0 : 1;
}
