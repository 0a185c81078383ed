#define _GNU_SOURCE
#include "allocation.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* More ranks than that are a mistake, and their sum must not overflow. */
#define MAX_SLOTS 65536

/* How long to wait for a child's end before looking again, in milliseconds. */
#define LOOK_INTERVAL 10

/* Cuts the next word off a line. NULL if there is none, or not exactly one space behind the one before. */
static char *word(char **rest)
{
    char *begin = *rest;
    if (NULL == begin || '\0' == *begin || ' ' == *begin) {
        return NULL;
    }
    char *end = strchr(begin, ' ');
    *rest = NULL;
    if (NULL != end) {
        *end = '\0';
        *rest = end + 1;
    }
    return begin;
}

/* A name of letters, digits and what `more` has, which does not begin with a digit unless that is allowed. */
static bool is_name(const char *name, const char *more, bool digit)
{
    if (NULL == name || strlen(name) > 255 || (!digit && isdigit((unsigned char)*name))) {
        return false;
    }
    for (const char *c = name; '\0' != *c; c++) {
        if (!isascii((unsigned char)*c) || (!isalnum((unsigned char)*c) && NULL == strchr(more, *c))) {
            return false;
        }
    }
    return true;
}

bool snowflock_parse(char *line, struct snowflock_message *m)
{
    char *rest = line;
    char *kind = word(&rest);

    memset(m, 0, sizeof *m);
    if (NULL == kind) {
        return false;
    }
    if (0 == strcmp(kind, "ready")) {
        m->kind = SNOWFLOCK_READY;
        return NULL == rest;
    }
    if (0 == strcmp(kind, "error")) {
        m->kind = SNOWFLOCK_ERROR;
        m->text = rest;
        return NULL != rest && '\0' != *rest;
    }
    if (0 == strcmp(kind, "host")) {
        m->kind = SNOWFLOCK_HOST;
        m->name = word(&rest);
        char *slots = word(&rest);
        m->text = word(&rest);
        if (!is_name(m->name, "-.", true) || '-' == *m->name || NULL == slots || !isdigit((unsigned char)*slots) ||
            NULL == m->text || NULL != rest) {
            return false;
        }
        char *end;
        errno = 0;
        long n = strtol(slots, &end, 10);
        struct in_addr address;
        if (0 != errno || '\0' != *end || n < 1 || n > MAX_SLOTS || 1 != inet_pton(AF_INET, m->text, &address)) {
            return false;
        }
        m->slots = (int)n;
        return true;
    }
    m->kind = SNOWFLOCK_MCA;
    if (0 == strcmp(kind, "env")) {
        m->kind = SNOWFLOCK_ENV;
    } else if (0 != strcmp(kind, "mca")) {
        return false;
    }
    m->name = word(&rest);
    m->text = rest;
    return is_name(m->name, "_", false) && NULL != rest;
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

/* What the child does before it is another program. Open MPI has threads and handlers, so only system calls. */
static void become(char *const argv[], const char *dir, int input, int output, int result)
{
    sigset_t none;
    struct sigaction plain;

    setpgid(0, 0);
    memset(&plain, 0, sizeof plain);
    plain.sa_handler = SIG_DFL;
    for (int s = 1; s < NSIG; s++) {
        sigaction(s, &plain, NULL);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* They may have become standard streams, where orterun was started without. */
    input = fcntl(input, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    output = fcntl(output, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    result = fcntl(result, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if ((NULL == dir || 0 == chdir(dir)) && dup2(input, STDIN_FILENO) >= 0 && dup2(output, STDOUT_FILENO) >= 0) {
        /* Whatever Open MPI has open is not for a process that may outlive it. */
        if (0 != syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC)) {
            for (int fd = STDERR_FILENO + 1, last = (int)sysconf(_SC_OPEN_MAX); fd < last; fd++) {
                fcntl(fd, F_SETFD, FD_CLOEXEC);
            }
        }
        execv(argv[0], argv);
    }
    int why = errno;
    ssize_t told = write(result, &why, sizeof why);
    (void)told;
    _exit(127);
}

int snowflock_start(struct snowflock_child *child, char *const argv[], const char *dir)
{
    int in[2] = {-1, -1}, out[2] = {-1, -1}, result[2] = {-1, -1};
    int why = 0;

    memset(child, 0, sizeof *child);
    child->input = child->output = -1;
    if (0 != pipe2(in, O_CLOEXEC) || 0 != pipe2(out, O_CLOEXEC) || 0 != pipe2(result, O_CLOEXEC) ||
        NULL == (child->line = malloc(SNOWFLOCK_LINE)) || 0 != fcntl(out[0], F_SETFL, O_NONBLOCK)) {
        why = errno;
        goto failed;
    }
    child->pid = fork();
    if (child->pid < 0) {
        why = errno;
        goto failed;
    }
    if (0 == child->pid) {
        become(argv, dir, in[0], out[1], result[1]);
    }
    close_fd(&in[0]);
    close_fd(&out[1]);
    close_fd(&result[1]);
    ssize_t n;
    do {
        n = read(result[0], &why, sizeof why);
    } while (n < 0 && EINTR == errno);
    if (n > 0) {
        waitpid(child->pid, NULL, 0);
        goto failed;
    }
    close_fd(&result[0]);
    child->input = in[1];
    child->output = out[0];
    return 0;

failed:
    for (int i = 0; i < 2; i++) {
        close_fd(&in[i]);
        close_fd(&out[i]);
        close_fd(&result[i]);
    }
    free(child->line);
    child->line = NULL;
    child->pid = 0;
    return 0 == why ? ECHILD : why;
}

int snowflock_read(struct snowflock_child *child, snowflock_line_fn fn, void *context)
{
    for (;;) {
        ssize_t n = read(child->output, child->line + child->length, SNOWFLOCK_LINE - child->length);
        if (n < 0 && EINTR == errno) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? errno : 0;
        }
        child->length += (size_t)n;
        char *begin = child->line, *end;
        while (NULL != (end = memchr(begin, '\n', child->length))) {
            *end = '\0';
            child->length -= (size_t)(end + 1 - begin);
            /* A zero byte would end the line early for who reads it as text. */
            if (strlen(begin) != (size_t)(end - begin)) {
                return EBADMSG;
            }
            if (!fn(begin, context)) {
                return ECANCELED;
            }
            begin = end + 1;
        }
        memmove(child->line, begin, child->length);
        if (SNOWFLOCK_LINE == child->length) {
            return EMSGSIZE;
        }
    }
}

static bool drop(char *line, void *context)
{
    (void)line;
    (void)context;
    return true;
}

static long milliseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

bool snowflock_ended(pid_t pid)
{
    pid_t p;

    do { /* Open MPI waits for any child of its process: this one may be unknown by now. */
        p = waitpid(pid, NULL, WNOHANG);
    } while (p < 0 && EINTR == errno);
    return 0 != p;
}

bool snowflock_end(struct snowflock_child *child, int seconds)
{
    bool joined;

    if (0 == child->pid) {
        return true;
    }
    close_fd(&child->input);
    for (long end = milliseconds() + 1000L * seconds; !(joined = snowflock_ended(child->pid)) && milliseconds() <= end;) {
        /* Its end closes its stdout, but a little before it can be waited for. */
        struct pollfd output = {.fd = child->output, .events = POLLIN};
        if (poll(&output, 1, LOOK_INTERVAL) > 0) {
            int why = snowflock_read(child, drop, NULL);
            if (EMSGSIZE == why || EBADMSG == why) {
                child->length = 0;
            } else if (EAGAIN != why) {
                close_fd(&child->output);
            }
        }
    }
    if (!joined) {
        /* Not waited for, so the number is still this child's. */
        kill(child->pid, SIGKILL);
        while (waitpid(child->pid, NULL, 0) < 0 && EINTR == errno) {
        }
    }
    close_fd(&child->output);
    free(child->line);
    memset(child, 0, sizeof *child);
    child->input = child->output = -1;
    return joined;
}
