/*
 * probe: tells what a rank sees. Each argument is a question; each answer is a
 * line "RANK QUESTION = ANSWER", or "RANK QUESTION failed: REASON".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netdb.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *rank, *question;

static void answer(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	printf("%s %s = ", rank, question);
	vprintf(format, args);
	printf("\n");
	va_end(args);
}

static void failed(void)
{
	printf("%s %s failed: %s\n", rank, question, strerror(errno));
}

static void hex(const unsigned char *bytes, int n)
{
	char text[129] = "";
	for (int i = 0; i < n && i < 64; i++)
		sprintf(text + 2 * i, "%02x", bytes[i]);
	answer("%s", text);
}

/* file prints a file's content, its line ends as '|'. */
static void file(const char *path)
{
	char text[65536];
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	if (n < 0) {
		failed();
		return;
	}
	while (n > 0 && text[n - 1] == '\n')
		n--;
	text[n] = 0;
	for (char *c = text; *c; c++)
		if (*c == '\n')
			*c = '|';
	answer("%s", text);
}

/* cached tells how much of a file is in memory already. */
static void cached(const char *path)
{
	static unsigned char page[65536]; /* of up to 256 MB */
	struct stat st;
	int fd = open(path, O_RDONLY), n = 0, in = 0;
	void *at;
	if (fd < 0 || fstat(fd, &st) < 0 ||
	    (at = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED || mincore(at, st.st_size, page) < 0) {
		failed();
		return;
	}
	for (; n < (st.st_size + 4095) / 4096; n++)
		in += page[n] & 1;
	if (in == n)
		answer("whole");
	else
		answer("%d of %d pages", in, n);
}

static void create(const char *path)
{
	int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
	if (fd < 0 || write(fd, "probe\n", 6) != 6 || close(fd) < 0) {
		failed();
		return;
	}
	answer("created");
}

static void interface(unsigned long what)
{
	struct ifreq r = {.ifr_name = "eth0"};
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	if (s < 0 || ioctl(s, what, &r) < 0)
		failed();
	else if (what == SIOCGIFHWADDR)
		hex((unsigned char *)r.ifr_hwaddr.sa_data, 6);
	else
		answer("%s", inet_ntoa(((struct sockaddr_in *)&r.ifr_addr)->sin_addr));
	close(s);
}

static void resolve(const char *name)
{
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *list;
	int e = getaddrinfo(name, NULL, &hints, &list);
	if (e) {
		printf("%s %s failed: %s\n", rank, question, gai_strerror(e));
		return;
	}
	answer("%s", inet_ntoa(((struct sockaddr_in *)list->ai_addr)->sin_addr));
	freeaddrinfo(list);
}

/* reach tries to connect to ADDRESS:PORT, for two seconds. */
static void reach(char *address)
{
	char *port = strchr(address, ':');
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port + 1))};
	*port = 0;
	inet_pton(AF_INET, address, &to.sin_addr);
	*port = ':';
	int s = socket(AF_INET, SOCK_STREAM, 0);
	struct timeval limit = {2, 0};
	setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	if (connect(s, (struct sockaddr *)&to, sizeof to) < 0)
		failed();
	else
		answer("connected");
	close(s);
}

/* descriptors lists what is open beside the standard streams. */
static void descriptors(void)
{
	char list[4096] = "", path[64], target[256];
	for (int fd = 3; fd < 256; fd++) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, target, sizeof target - 1);
		if (n < 0)
			continue;
		target[n] = 0;
		snprintf(list + strlen(list), sizeof list - strlen(list), "%d:%s ", fd, target);
	}
	answer("%s", list);
}

/* signals tells of each signal that comes in so many seconds. */
static void signals(int seconds)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGUSR1);
	/* This process has one thread, so no other can be found to die of one. */
	sigprocmask(SIG_BLOCK, &set, NULL);
	answer("listening");
	for (time_t end = time(NULL) + seconds; time(NULL) < end;) {
		struct timespec second = {1, 0};
		int sig = sigtimedwait(&set, NULL, &second);
		if (sig > 0)
			answer("SIG%s", sigabbrev_np(sig));
	}
}

int main(int argc, char **argv)
{
	rank = getenv("PMI_RANK") ? getenv("PMI_RANK") : "?";
	/* Line by line: a probe that is killed has said what it had found. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		question = argv[i];
		char *colon = strchr(argv[i], ':'), *of = colon ? colon + 1 : "", text[4096];
		unsigned char random[32];
#define ASKED(q) (strncmp(question, q, strlen(q)) == 0)
		if (ASKED("arg:"))
			answer("%s", of);
		else if (ASKED("env:")) {
			if (getenv(of))
				answer("%s", getenv(of));
			else
				printf("%s %s unset\n", rank, question);
		} else if (ASKED("cwd"))
			answer("%s", getcwd(text, sizeof text));
		else if (ASKED("hostname"))
			gethostname(text, sizeof text), answer("%s", text);
		else if (ASKED("uid"))
			answer("%d:%d", getuid(), getgid());
		else if (ASKED("getrandom"))
			getrandom(random, sizeof random, 0), hex(random, sizeof random);
		else if (ASKED("urandom")) {
			int fd = open("/dev/urandom", O_RDONLY);
			if (read(fd, random, sizeof random) != sizeof random)
				failed();
			else
				hex(random, sizeof random);
			close(fd);
		} else if (ASKED("clock")) {
			struct timespec now;
			clock_gettime(CLOCK_REALTIME, &now);
			answer("%lld.%09ld", (long long)now.tv_sec, now.tv_nsec);
		} else if (ASKED("stack"))
			answer("%p", (void *)text);
		else if (ASKED("ip"))
			interface(SIOCGIFADDR);
		else if (ASKED("mac"))
			interface(SIOCGIFHWADDR);
		else if (ASKED("descriptors"))
			descriptors();
		else if (ASKED("sleep:")) {
			usleep(atoi(of) * 1000);
			answer("slept");
		} else if (ASKED("signals:"))
			signals(atoi(of));
		else if (ASKED("file:"))
			file(of);
		else if (ASKED("cached:"))
			cached(of);
		else if (ASKED("create:"))
			create(of);
		else if (ASKED("resolve:"))
			resolve(of);
		else if (ASKED("reach:"))
			reach(of);
		else {
			fprintf(stderr, "probe: no such question: %s\n", question);
			return 2;
		}
	}
	return 0;
}
