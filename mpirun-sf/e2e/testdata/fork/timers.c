/*
 * timers FORKS: forks while timers of 100 Hz run. No timer may be lost, the
 * monotonic clock may not go back, and no sleep may end too early.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "sf.h"

#define SECOND 1000000000LL
#define PERIOD 10000000LL

static _Atomic long long signals, expirations, sleeps, early, backwards, longest;

static long long now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

static void on_alarm(int signal)
{
	(void)signal;
	signals++;
}

static void *count_expirations(void *fd)
{
	uint64_t n;

	while (read(*(int *)fd, &n, sizeof n) == sizeof n)
		expirations += n;
	return NULL;
}

static void *sleep_on(void *unused)
{
	for (;;) {
		struct timespec t = { 0, 50000000 };
		long long begin = now(CLOCK_MONOTONIC);

		while (nanosleep(&t, &t))
			;
		if (now(CLOCK_MONOTONIC) - begin < 50000000)
			early++;
		sleeps++;
	}
	return unused;
}

static void *watch_clock(void *unused)
{
	long long last = now(CLOCK_MONOTONIC);

	for (;;) {
		long long t = now(CLOCK_MONOTONIC);

		if (t < last)
			backwards++;
		if (t - last > longest)
			longest = t - last;
		last = t;
		usleep(1000);
	}
	return unused;
}

/* report says what went wrong in this machine, as an exit status. */
static int report(const char *who, long long begin, long long signals_before)
{
	long long due = (now(CLOCK_MONOTONIC) - begin) / PERIOD;
	long long missing = due - expirations;

	/* The reader may be late by what a busy machine makes it. */
	if (missing < -1 || missing > 100) {
		printf("%s: %lld expirations of %lld\n", who, (long long)expirations, due);
		return 81;
	}
	if (signals == signals_before) {
		printf("%s: the interval timer is lost\n", who);
		return 82;
	}
	if (early || backwards) {
		printf("%s: %lld sleeps ended early, the clock went back %lld times\n", who, (long long)early, (long long)backwards);
		return 83;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct itimerval interval = { { 0, 10000 }, { 0, 10000 } };
	struct itimerspec spec = { { 0, PERIOD }, { 0, PERIOD } };
	struct sigaction action;
	pthread_t thread;
	sigset_t alarm;
	int fd = timerfd_create(CLOCK_MONOTONIC, 0), forks = atoi(argv[argc - 1]), status;
	long long begin, slept, asleep;

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm, NULL); /* of the threads to come */
	begin = now(CLOCK_MONOTONIC);
	timerfd_settime(fd, 0, &spec, NULL);
	pthread_create(&thread, NULL, count_expirations, &fd);
	pthread_create(&thread, NULL, sleep_on, NULL);
	pthread_create(&thread, NULL, watch_clock, NULL);
	pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
	memset(&action, 0, sizeof action);
	action.sa_handler = on_alarm;
	action.sa_flags = SA_RESTART;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &interval, NULL);

	for (int i = 0; i < forks; i++) {
		int statuses[1], id;
		long long before = signals;
		sf_ticket t;

		if (sf_request_ticket(1, 0, &t) < 0 || (id = sf_clone(&t)) < 0) {
			printf("fork: %s\n", sf_errmsg());
			return 1;
		}
		slept = sleeps;
		asleep = now(CLOCK_MONOTONIC);
		while (now(CLOCK_MONOTONIC) - asleep < SECOND)
			pause();
		if (sleeps == slept && (id > 0 || now(CLOCK_MONOTONIC) - asleep < 10 * SECOND)) {
			printf("no sleep has ended in a second\n");
			if (id > 0)
				sf_exit(84);
			return 1;
		}
		status = report(id ? "a clone" : "the parent", begin, before);
		if (id > 0)
			sf_exit(status);
		if (status)
			return 1;
		if (sf_join(&t, 60, statuses) < 0 || statuses[0]) {
			printf("join: %d: %s\n", statuses[0], sf_errmsg());
			return 1;
		}
	}
	printf("timers: ok, %lld expirations, %lld signals, longest step %lld ms\n", (long long)expirations, (long long)signals, longest / 1000000);
	return 0;
}
