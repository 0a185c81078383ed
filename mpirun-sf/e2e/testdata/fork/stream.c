/*
 * stream FORKS: a machine and its clone send each other numbers over one TCP
 * connection, both ways and all the time, while each of the two is forked. None
 * may be lost, and in the copies that the forks make the connection is dead.
 */
#include <arpa/inet.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "sf.h"

#define BLOCK 512
#define END UINT64_MAX

static _Atomic uint64_t sent, received;
static _Atomic int stop, wrong, read_broken, write_broken;
static _Atomic long long stall; /* in ms, the longest between two reads */
static int connection;

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static int send_all(const void *data, size_t size)
{
	for (const char *p = data; size > 0;) {
		ssize_t n = send(connection, p, size, MSG_NOSIGNAL);

		if (n <= 0)
			return -1;
		p += n, size -= n;
	}
	return 0;
}

static void *send_numbers(void *unused)
{
	uint64_t block[BLOCK], end = END;

	while (!stop) {
		for (int i = 0; i < BLOCK; i++)
			block[i] = sent + i;
		if (send_all(block, sizeof block)) {
			write_broken = 1;
			return unused;
		}
		sent += BLOCK;
		usleep(2000);
	}
	if (send_all(&end, sizeof end))
		write_broken = 1;
	shutdown(connection, SHUT_WR);
	return unused;
}

static void *receive_numbers(void *unused)
{
	uint64_t n;
	size_t have = 0;
	long long last = now();

	for (;;) {
		ssize_t got = recv(connection, (char *)&n + have, sizeof n - have, 0);

		if (got <= 0) {
			read_broken = 1;
			return unused;
		}
		if ((have += got) < sizeof n)
			continue;
		have = 0;
		if (now() - last > stall)
			stall = now() - last;
		last = now();
		if (n == END)
			return unused;
		if (n != received) {
			printf("number %llu came instead of %llu\n", (unsigned long long)n, (unsigned long long)received);
			wrong = 1;
			return unused;
		}
		received++;
	}
}

static void fail(const char *what)
{
	printf("%s: %s\n", what, sf_errmsg());
	sf_exit(90);
	exit(1);
}

/* be_peer is what the clone does, and a copy of it that somebody makes. */
static void be_peer(const char *ip, in_port_t port)
{
	struct sockaddr_in parent = { .sin_family = AF_INET, .sin_port = port };
	pthread_t sender, receiver;
	int queued;

	inet_pton(AF_INET, ip, &parent.sin_addr);
	connection = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(connection, (struct sockaddr *)&parent, sizeof parent))
		sf_exit(91);
	pthread_create(&sender, NULL, send_numbers, NULL);
	pthread_create(&receiver, NULL, receive_numbers, NULL);
	pthread_join(receiver, NULL);
	if (read_broken) { /* in a copy, both ways */
		for (int i = 0; i < 100 && !write_broken; i++)
			usleep(100000);
		sf_exit(write_broken ? 7 : 8);
	}
	stop = 1;
	pthread_join(sender, NULL);
	while (!ioctl(connection, SIOCOUTQ, &queued) && queued > 0)
		usleep(1000); /* what the other end does not have is lost at exit */
	sf_exit(wrong || write_broken ? 92 : 0);
}

static void fork_once(const char *vm, int want)
{
	int statuses[1], id, error;
	sf_ticket t;

	if (sf_request_ticket_vm(vm, 1, 0, 0, &t) < 0 || (id = sf_clone(&t)) < 0)
		fail("fork");
	if (id > 0) {
		for (int i = 0; i < 200 && !(read_broken && write_broken); i++)
			usleep(100000);
		sf_exit(read_broken && write_broken ? 7 : 8);
	}
	statuses[0] = -1;
	if ((error = sf_join(&t, 60, statuses)) < 0 || statuses[0] != want) {
		printf("fork of %s: status %d, want %d; %s\n", vm ? vm : "the parent", statuses[0], want, error < 0 ? sf_errmsg() : "");
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t size = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0), forks = atoi(argv[argc - 1]), id, statuses[1];
	pthread_t sender, receiver;
	sf_identity me;
	sf_ticket t;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &size))
		fail("listen");
	if (sf_whoami(&me) < 0 || sf_request_ticket(1, 0, &t) < 0 || (id = sf_clone(&t)) < 0)
		fail("clone");
	if (id > 0)
		be_peer(me.ip, address.sin_port);
	if ((connection = accept(listener, NULL, NULL)) < 0)
		fail("accept");
	pthread_create(&sender, NULL, send_numbers, NULL);
	pthread_create(&receiver, NULL, receive_numbers, NULL);
	for (int i = 0; i < forks; i++) {
		uint64_t s = sent + 4 * BLOCK, r = received + 4 * BLOCK;

		while ((sent < s || received < r) && !wrong && !read_broken && !write_broken)
			usleep(1000);
		if (wrong || read_broken || write_broken)
			break;
		/* The clone is forked in its turn, by its parent's wish. */
		fork_once(i % 3 == 2 ? t.clones[0].name : NULL, 7);
	}
	stop = 1;
	pthread_join(sender, NULL);
	pthread_join(receiver, NULL);
	if (wrong || read_broken || write_broken) {
		printf("the connection broke in the parent: read %d, write %d\n", read_broken, write_broken);
		return 1;
	}
	if (sf_join(&t, 60, statuses) < 0 || statuses[0]) {
		printf("the clone: status %d, %s\n", statuses[0], sf_errmsg());
		return 1;
	}
	printf("stream: ok, %llu numbers out, %llu in, none for %lld ms at most\n", (unsigned long long)sent, (unsigned long long)received, (long long)stall);
	return 0;
}
