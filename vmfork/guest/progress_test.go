package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fakeUCX counts how often its workers are progressed, and by whom.
const fakeUCX = `#include <pthread.h>
#include <stdint.h>
struct worker { pthread_t creator; int by_creator, by_others, dead; };
static struct worker w[8];
static int n;
int ucp_worker_create(void *context, const void *params, void **worker)
{
	if (!context)
		return -1;
	w[n].creator = pthread_self();
	*worker = &w[n++];
	return 0;
}
void ucp_worker_destroy(void *worker) { ((struct worker *)worker)->dead = 1; }
unsigned ucp_worker_progress(void *worker)
{
	struct worker *x = worker;
	if (x->dead)
		__builtin_trap();
	if (pthread_equal(x->creator, pthread_self())) x->by_creator++; else x->by_others++;
	return 0;
}
int by_creator(int i) { return w[i].by_creator; }
int by_others(int i) { return w[i].by_others; }
`

// The waiting program: worker 0 is this thread's, worker 1 another thread's, worker
// 2 another thread's but for all, worker 3 destroyed before the wait. FAKE
// is either linked with or opened.
const waitingProgram = `#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
struct params { uint64_t mask; int mode; char rest[256]; };
static int (*create)(void *, const struct params *, void **);
static void (*destroy)(void *);
static int (*by_creator)(int), (*by_others)(int);
static int pair[2], other[2];
static void *make(void *mode)
{
	struct params p = {.mask = 1, .mode = (int)(intptr_t)mode};
	void *w;
	if (create(&p, &p, &w) != 0)
		exit(3);
	return w;
}
static void *answer(void *fd) { usleep(200000); write(*(int *)fd, "hello\n", 6); return 0; }
static void wait_on(int fd, int *peer, const char *name)
{
	char b[16] = "";
	int before = by_creator(0);
	pthread_t t;
	pthread_create(&t, 0, answer, peer);
	if (read(fd, b, sizeof b) != 6)
		exit(4);
	pthread_join(t, 0);
	printf("%s: progressed %d\n", name, by_creator(0) > before);
}
int main(int argc, char **argv)
{
	pthread_t t;
	void *w, *h;
	h = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	/* As a library opened by dlopen would bind: first the global scope, with
	   the preload, then its own. */
	create = dlsym(RTLD_DEFAULT, "ucp_worker_create");
	destroy = dlsym(RTLD_DEFAULT, "ucp_worker_destroy");
	by_creator = dlsym(h, "by_creator");
	by_others = dlsym(h, "by_others");
	if (!create || !destroy || !by_creator || !by_others)
		return 2;
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	socketpair(AF_UNIX, SOCK_STREAM, 0, other);
	char env[16];
	sprintf(env, "%d", pair[0]);
	if (!getenv("NO_PMI_FD"))
		setenv("PMI_FD", env, 1);
	make(0);
	pthread_create(&t, 0, make, (void *)0);
	pthread_join(t, 0);
	pthread_create(&t, 0, make, (void *)2);
	pthread_join(t, 0);
	w = make(0);
	destroy(w);
	if (create(NULL, NULL, &w) != -1)
		return 5;
	wait_on(other[0], &other[1], "other descriptor");
	wait_on(pair[0], &pair[1], "PMI_FD");
	printf("single, of another thread: %d %d\n", by_creator(1), by_others(1));
	printf("multi, of another thread: %d\n", by_others(2) > 0);
	close(pair[1]);
	char c;
	printf("end of file: %zd\n", read(pair[0], &c, 1));
	return 0;
}
`

func writeProgress(t *testing.T, dir string) string {
	t.Helper()
	b, err := Progress()
	if err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(dir, "progress.so"), string(b), 0o755)
}

func TestProgress(t *testing.T) {
	dir := t.TempDir()
	preload := writeProgress(t, dir)
	fake := compile(t, filepath.Join(dir, "libucp.so.0"), fakeUCX, "-shared", "-fPIC", "-Wl,-soname,libucp.so.0")
	opened := compile(t, filepath.Join(dir, "opened"), waitingProgram)
	linked := compile(t, filepath.Join(dir, "linked"), waitingProgram, "-Wl,--no-as-needed", fake, "-Wl,-rpath,"+dir)
	const rest = "single, of another thread: 0 0\nmulti, of another thread: %d\nend of file: 0\n"
	for name, tt := range map[string]struct {
		prog, env, want string
	}{
		"linked":         {linked, "X=", "other descriptor: progressed 0\nPMI_FD: progressed 1\n" + fmt.Sprintf(rest, 1)},
		"opened":         {opened, "X=", "other descriptor: progressed 0\nPMI_FD: progressed 1\n" + fmt.Sprintf(rest, 1)},
		"without PMI_FD": {linked, "NO_PMI_FD=1", "other descriptor: progressed 0\nPMI_FD: progressed 0\n" + fmt.Sprintf(rest, 0)},
		"no number":      {linked, "NO_PMI_FD=1 PMI_FD=-1", "other descriptor: progressed 0\nPMI_FD: progressed 0\n" + fmt.Sprintf(rest, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(tt.prog, fake)
			cmd.Env = append(strings.Fields(tt.env), "LD_PRELOAD="+preload)
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != tt.want {
				t.Errorf("%v, said:\n%swant:\n%s", err, out, tt.want)
			}
		})
	}
	// A program that has nothing to do with UCX is left alone, and loads.
	cmd := exec.Command("/bin/sh", "-c", "read line; echo got $line")
	cmd.Env = []string{"LD_PRELOAD=" + preload, "PMI_FD=0", "LD_BIND_NOW=1"}
	cmd.Stdin = strings.NewReader("this\n")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "got this\n" {
		t.Errorf("sh: %v, %s", err, out)
	}
	// No symbol versions, so no wish for this machine's C library.
	if out := command(t, need(t, "readelf", "binutils"), "-V", preload); strings.Contains(out, "GLIBC") {
		t.Errorf("the preload asks for a C library (link it with -nostdlib):\n%s", out)
	}
}

// While it waits it does not keep the processor busy.
func TestProgressSleeps(t *testing.T) {
	dir := t.TempDir()
	preload := writeProgress(t, dir)
	fake := compile(t, filepath.Join(dir, "libucp.so.0"), fakeUCX, "-shared", "-fPIC", "-Wl,-soname,libucp.so.0")
	prog := compile(t, filepath.Join(dir, "wait"), strings.ReplaceAll(waitingProgram, "usleep(200000)", "usleep(1000000)"))
	cmd := exec.Command(prog, fake)
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+preload)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(); cpu > 500*time.Millisecond {
		t.Errorf("used %v of processor time in two seconds of waiting", cpu)
	}
}

// pollingProgram polls in vain by a clock of its own, and counts how often the preload sleeps. The clock is late by 5 ms
// before the poll of each number that it is given; before a number with a minus there is something to do.
const pollingProgram = `#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
int something;
static long long ns = 1;
static int naps;
int clock_gettime(clockid_t c, struct timespec *t)
{
	t->tv_sec = ns / 1000000000, t->tv_nsec = ns % 1000000000;
	return 0;
}
int nanosleep(const struct timespec *t, struct timespec *left)
{
	naps++;
	ns += t->tv_nsec;
	return 0;
}
#ifdef OPAL
static void (*progress)(void);
static void start(void)
{
	/* As a library opened by dlopen would bind: to the preload, or to its own. */
	void *h = dlopen("libopen-pal.so.40", RTLD_NOW | RTLD_LOCAL);
	progress = dlsym(RTLD_DEFAULT, "opal_progress");
	if (!progress)
		progress = dlsym(h, "opal_progress");
}
static void poll_once(void) { progress(); }
#else
int ucp_worker_create(void *, const void *, void **);
unsigned ucp_worker_progress(void *);
struct params { uint64_t mask; int mode; } p;
static void *w;
static void start(void)
{
	if (ucp_worker_create(&p, &p, &w) != 0)
		exit(3);
}
static void poll_once(void) { ucp_worker_progress(w); }
#endif
int main(int argc, char **argv)
{
	start();
	for (int i = 1; i <= 10000; i++) {
		something = 0;
		for (int k = 1; k < argc; k++) {
			if (atoi(argv[k]) == i)
				ns += 5000000;
			something = something || atoi(argv[k]) == -i;
		}
		ns += 1000;
		poll_once();
	}
	printf("%d\n", naps);
	return 0;
}
`

// fakeOpal polls as Open MPI with mpi_yield_when_idle.
const fakeOpal = `#include <sched.h>
extern int something;
void opal_progress(void) { if (!something) sched_yield(); }
`

// Ranks that poll and share a processor let go of it.
func TestProgressTakesTurns(t *testing.T) {
	dir := t.TempDir()
	preload := writeProgress(t, dir)
	ucp := compile(t, filepath.Join(dir, "libucp.so.0"), "extern int something;\n"+strings.ReplaceAll(fakeUCX, "return 0;\n}\nint by_c", "return something;\n}\nint by_c"),
		"-shared", "-fPIC", "-Wl,-soname,libucp.so.0")
	compile(t, filepath.Join(dir, "libopen-pal.so.40"), fakeOpal, "-shared", "-fPIC", "-Wl,-soname,libopen-pal.so.40")
	for name, options := range map[string][]string{
		"UCX":      {"-rdynamic", "-Wl,--no-as-needed", ucp, "-Wl,-rpath," + dir},
		"Open MPI": {"-rdynamic", "-DOPAL", "-Wl,-rpath," + dir},
	} {
		prog := compile(t, filepath.Join(dir, strings.ReplaceAll(name, " ", "-")), pollingProgram, options...)
		for _, tt := range []struct {
			name, args string
			naps       bool
		}{
			{"a core of its own", "", false},
			{"time is missing", "5000", true},
			{"a message came before the program computed", "5000 -4999", false},
			{"time is missing while it waits for the next", "5000 -4000", true},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				cmd := exec.Command(prog, strings.Fields(tt.args)...)
				cmd.Env = append(os.Environ(), "LD_PRELOAD="+preload)
				out, err := cmd.CombinedOutput()
				n, parseErr := strconv.Atoi(strings.TrimSpace(string(out)))
				if err != nil || parseErr != nil || n > 0 != tt.naps {
					t.Errorf("%v, slept %s times", err, out)
				}
			})
		}
	}
}
