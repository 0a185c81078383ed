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

func TestUCXProgress(t *testing.T) {
	dir := t.TempDir()
	b, err := UCXProgress()
	if err != nil {
		t.Fatal(err)
	}
	preload := write(t, filepath.Join(dir, "ucx-progress.so"), string(b), 0o755)
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
func TestUCXProgressSleeps(t *testing.T) {
	dir := t.TempDir()
	b, err := UCXProgress()
	if err != nil {
		t.Fatal(err)
	}
	preload := write(t, filepath.Join(dir, "ucx-progress.so"), string(b), 0o755)
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

// pollingProgram is two threads on one processor, each of which polls until the other has counted on.
const pollingProgram = `#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
int ucp_worker_create(void *, const void *, void **);
unsigned ucp_worker_progress(void *);
struct params { uint64_t mask; int mode; };
static volatile int turn;
static void *play(void *me)
{
	struct params p = {0};
	void *w;
	if (ucp_worker_create(&p, &p, &w) != 0)
		exit(3);
	for (int i = 0; i < 200; i++) {
		while (turn % 2 != (int)(intptr_t)me)
			ucp_worker_progress(w);
		turn++;
	}
	return 0;
}
int main(void)
{
	cpu_set_t one;
	pthread_t t;
	struct rusage r;
	CPU_ZERO(&one);
	for (int i = 0; sched_getaffinity(0, sizeof one, &one) == 0 && CPU_COUNT(&one) > 1; i++) {
		CPU_CLR(i, &one);
		sched_setaffinity(0, sizeof one, &one);
	}
	pthread_create(&t, 0, play, (void *)0);
	play((void *)1);
	pthread_join(t, 0);
	getrusage(RUSAGE_SELF, &r);
	printf("%ld\n", r.ru_nvcsw);
	return 0;
}
`

// Ranks that poll and share a processor let go of it.
func TestUCXProgressTakesTurns(t *testing.T) {
	dir := t.TempDir()
	b, err := UCXProgress()
	if err != nil {
		t.Fatal(err)
	}
	preload := write(t, filepath.Join(dir, "ucx-progress.so"), string(b), 0o755)
	fake := compile(t, filepath.Join(dir, "libucp.so.0"), fakeUCX, "-shared", "-fPIC", "-Wl,-soname,libucp.so.0")
	prog := compile(t, filepath.Join(dir, "poll"), pollingProgram, "-Wl,--no-as-needed", fake, "-Wl,-rpath,"+dir)
	yields := func(env ...string) (n int) {
		cmd := exec.Command(prog)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			n, err = strconv.Atoi(strings.TrimSpace(string(out)))
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return n
	}
	without, with := yields(), yields("LD_PRELOAD="+preload)
	if with < without+5 {
		t.Errorf("let go of the processor %d times for 400 turns, %d times without the preload", with, without)
	}
}
