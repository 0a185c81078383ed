/*
 * progress.so: keeps UCX going while MPICH waits for the PMI server, and lets go of
 * the processor while MPICH or Open MPI waits for a message and others want it.
 *
 * The bug. MPICH up to 4.1 on UCX (device ch4:ucx, which is Debian's MPICH)
 * deadlocks in MPI_Finalize when ranks are on several hosts. Finalize flushes
 * each rank's endpoints and then enters a PMI barrier, in which a rank sits in
 * read(PMI_FD) without progressing UCX. A rank that comes later needs an answer
 * from its peers' UCX for its own flush; the peers are in the barrier already and
 * never give it, so the late rank never gets there. See the issues #6584 and
 * #6596 of pmodels/mpich. No setting of UCX helps.
 *
 * The cure. Loaded by LD_PRELOAD, this library notes the UCX workers that are
 * created, and turns read(PMI_FD) into "progress the workers until there is
 * something to read, then read".
 *
 * Threads. A UCX worker is used by one thread at a time, and only MPICH knows
 * which. So a worker is progressed only by the thread that created it, which the
 * MPI standard also demands to be the one in MPI_Finalize; a worker that was
 * created for any number of threads is progressed by all. The list of workers has
 * a lock, held while a worker is progressed, so that none is destroyed meanwhile.
 *
 * Taking turns. MPI polls until a message comes. A virtual CPU that polls
 * cannot be told from one that computes, so where clones have more of them than
 * the host has cores, a rank with nothing to do keeps its core for a whole time
 * slice of the host, while the rank that it waits for waits for the core: a step
 * of six ranks on two cores takes 50 ms. Inside the guest this shows: between two
 * polls some milliseconds are missing. For a second after that, a rank that polls
 * in vain sleeps for moments, so that its virtual CPU halts. Where every virtual
 * CPU has a core, nothing is missing and nobody sleeps.
 *
 * Of UCX only programs that are given PMI_FD are touched. The library is linked with
 * -nostdlib: its references then carry no symbol versions, and it loads with an
 * older C library than the one it was built on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The parts of UCX's stable binary interface (ucp.h, thread_mode.h) used here. */
struct worker_params {
	uint64_t field_mask;
	int thread_mode;
};
enum { FIELD_THREAD_MODE = 1, THREAD_MODE_MULTI = 2, STATUS_UNSUPPORTED = -22 };

enum {
	MAX_WORKERS = 256,
	IDLE_ROUNDS = 200, /* before a waiter sleeps instead of spinning */
	IDLE_MS = 1,
	GLANCE = 64, /* polls in vain from one look at the clock to the next */
};

#define UCP "libucp.so"
#define OPAL "libopen-pal.so"

#define MISSING_NS 2000000LL   /* between two looks: the processor was taken away */
#define TURNS_NS   1000000000LL /* for how long it is shared then */
#define NAP_NS	   100000LL

static struct {
	void *worker;
	pthread_t creator;
	int any_thread;
} workers[MAX_WORKERS];
static int count;       /* of workers; read without the lock to decide fast */
static int pmi_fd = -1; /* set before count first leaves zero */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct find {
	const char *library; /* the start of its file's name */
	void *handle;
};

/* Whether a loaded object is what find looks for; then it is opened. */
static int is_library(struct dl_phdr_info *info, size_t size, void *data)
{
	struct find *f = data;
	const char *name = info->dlpi_name, *p = name, *q = f->library;

	(void)size;
	for (const char *s = name; s && *s; s++)
		if (*s == '/')
			p = s + 1;
	while (p && *q && *p == *q)
		p++, q++;
	if (!*q)
		f->handle = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
	return f->handle != 0;
}

/*
 * The real function of that name. It may be out of the reach of RTLD_NEXT, when
 * MPI was itself opened by dlopen, as Python does.
 */
static void *next(const char *library, const char *name)
{
	void *f = dlsym(RTLD_NEXT, name);
	struct find in = {library, 0};

	if (!f && dl_iterate_phdr(is_library, &in)) {
		f = dlsym(in.handle, name);
		dlclose(in.handle); /* it stays: whoever calls us holds it */
	}
	return f;
}

/* PMI_FD as a descriptor, -1 if there is none. Only a plain number counts. */
static int descriptor(void)
{
	const char *s = getenv("PMI_FD");
	int n = 0;
	if (!s || !*s)
		return -1;
	for (; *s; s++) {
		if (*s < '0' || *s > '9' || n > 1000000)
			return -1;
		n = n * 10 + (*s - '0');
	}
	return n;
}

int ucp_worker_create(void *context, const struct worker_params *params, void **worker)
{
	int (*create)(void *, const void *, void **) = next(UCP, "ucp_worker_create");
	int status;

	if (!create)
		return STATUS_UNSUPPORTED;
	status = create(context, params, worker);
	if (status != 0)
		return status;
	pthread_mutex_lock(&lock);
	if (pmi_fd < 0)
		pmi_fd = descriptor();
	if (count < MAX_WORKERS) {
		workers[count].worker = *worker;
		workers[count].creator = pthread_self();
		workers[count].any_thread = (params->field_mask & FIELD_THREAD_MODE) &&
					    params->thread_mode == THREAD_MODE_MULTI;
		__atomic_store_n(&count, count + 1, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&lock);
	return status;
}

void ucp_worker_destroy(void *worker)
{
	void (*destroy)(void *) = next(UCP, "ucp_worker_destroy");

	pthread_mutex_lock(&lock);
	for (int i = 0; i < count; i++) {
		if (workers[i].worker == worker) {
			workers[i] = workers[count - 1];
			__atomic_store_n(&count, count - 1, __ATOMIC_RELEASE);
			break;
		}
	}
	pthread_mutex_unlock(&lock);
	if (destroy)
		destroy(worker);
}

/* UCX's own ucp_worker_progress, NULL if there is none. */
static unsigned (*real_progress(void))(void *)
{
	static unsigned (*real)(void *);
	unsigned (*p)(void *) = __atomic_load_n(&real, __ATOMIC_RELAXED);

	if (!p) {
		p = next(UCP, "ucp_worker_progress");
		__atomic_store_n(&real, p, __ATOMIC_RELAXED);
	}
	return p;
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* The polls of this thread; the model needs no function of the C library. */
static __thread __attribute__((tls_model("initial-exec"))) struct {
	unsigned polls;   /* in vain since the last that was not */
	long long looked; /* at the clock */
	long long turns;  /* until when processors are taken to be shared */
	int yielded;	  /* since this was set to 0 */
} t;

/* Notes a poll in vain; sleeps for a moment if processors are shared. */
static void idle(void)
{
	long long at;

	if (++t.polls % GLANCE)
		return;
	at = now();
	if (at - t.looked > MISSING_NS && t.polls > GLANCE)
		t.turns = at + TURNS_NS;
	if (at < t.turns) {
		nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
		/* What is missing now is missing because others have the processor. */
		if (now() - at > MISSING_NS)
			t.turns = at + TURNS_NS;
		at = now();
	}
	t.looked = at;
}

/*
 * Open MPI polls with opal_progress, which does not say whether anything came. But
 * if nothing did it calls sched_yield, where mpi_yield_when_idle is set.
 */
void opal_progress(void)
{
	static void (*real)(void);
	void (*p)(void) = __atomic_load_n(&real, __ATOMIC_RELAXED);

	if (!p) {
		p = next(OPAL, "opal_progress");
		__atomic_store_n(&real, p, __ATOMIC_RELAXED);
	}
	t.yielded = 0;
	p();
	if (!t.yielded)
		t.polls = 0;
}

int sched_yield(void)
{
	t.yielded = 1;
	idle();
	return syscall(SYS_sched_yield);
}

unsigned ucp_worker_progress(void *worker)
{
	unsigned (*p)(void *) = real_progress();
	unsigned done = p ? p(worker) : 0;

	if (done)
		t.polls = 0;
	else
		idle();
	return done;
}

/* Progresses the workers that this thread may touch; returns what they did. */
static unsigned progress(unsigned (*worker_progress)(void *))
{
	unsigned done = 0;

	pthread_mutex_lock(&lock);
	for (int i = 0; i < count; i++)
		if (workers[i].any_thread || pthread_equal(workers[i].creator, pthread_self()))
			done += worker_progress(workers[i].worker);
	pthread_mutex_unlock(&lock);
	return done;
}

/* Returns when fd can be read, or when it is better that read itself looks. */
static void wait_for(int fd)
{
	unsigned (*p)(void *) = real_progress();
	struct pollfd in = {.fd = fd, .events = POLLIN};
	int idle = 0;

	if (!p || (fcntl(fd, F_GETFL) & O_NONBLOCK))
		return;
	/*
	 * Peers in other guests share this host's processors, so a rank with
	 * nothing to do lets go of its own: a message on fd still wakes it at
	 * once, and a peer's flush waits a millisecond at most.
	 */
	while (poll(&in, 1, idle < IDLE_ROUNDS ? 0 : IDLE_MS) == 0) {
		if (progress(p))
			idle = 0;
		else if (idle < IDLE_ROUNDS) {
			idle++;
			sched_yield();
		}
	}
}

ssize_t read(int fd, void *buffer, size_t size)
{
	static ssize_t (*real)(int, void *, size_t);
	ssize_t (*r)(int, void *, size_t) = __atomic_load_n(&real, __ATOMIC_RELAXED);

	if (!r) {
		r = dlsym(RTLD_NEXT, "read");
		if (!r)
			return syscall(SYS_read, fd, buffer, size);
		__atomic_store_n(&real, r, __ATOMIC_RELAXED);
	}
	if (__atomic_load_n(&count, __ATOMIC_ACQUIRE) > 0 && fd >= 0 && fd == pmi_fd)
		wait_for(fd);
	return r(fd, buffer, size);
}
