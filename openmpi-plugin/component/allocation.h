/*
 * The child process `mpirun-sf ompi allocate`, and the lines that it says. Knows nothing of Open MPI, so that it
 * can be tested without one.
 */
#ifndef SNOWFLOCK_ALLOCATION_H
#define SNOWFLOCK_ALLOCATION_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* A line is at most this long, with its line feed, in bytes. */
#define SNOWFLOCK_LINE 65536

/* What a line says. name and text point into the line that was parsed. */
struct snowflock_message {
    enum {
        SNOWFLOCK_HOST,  /* a clone: name, slots; text is its address */
        SNOWFLOCK_MCA,   /* a parameter: name, text */
        SNOWFLOCK_ENV,   /* a variable: name, text */
        SNOWFLOCK_READY, /* the clones are there */
        SNOWFLOCK_ERROR  /* text says why they are not, or not any more */
    } kind;
    char *name;
    char *text;
    int slots;
};

/* Reads one line without its line feed, which is changed. False if it means nothing. */
bool snowflock_parse(char *line, struct snowflock_message *message);

/* The process. pid is 0 when there is none. */
struct snowflock_child {
    pid_t pid;
    int input;  /* write end of its stdin: it joins when this closes */
    int output; /* read end of its stdout, non-blocking */
    char *line; /* what has come of a line that has not ended */
    size_t length;
};

/*
 * Starts argv[0], a path, with the environment of this process and in folder dir (NULL for this one's). It gets a
 * process group of its own: an interrupt at the terminal is the caller's, who then lets it join. 0, or errno.
 */
int snowflock_start(struct snowflock_child *child, char *const argv[], const char *dir);

/* Called for each line, without its line feed. False ends the reading. */
typedef bool (*snowflock_line_fn)(char *line, void *context);

/*
 * Reads what there is, without waiting. EAGAIN: there is nothing now; 0: it has closed its stdout; EMSGSIZE: a line is
 * too long; ECANCELED: fn said so; or what read says.
 */
int snowflock_read(struct snowflock_child *child, snowflock_line_fn fn, void *context);

/* Whether a child of this process has ended. Takes its exit status away, if nobody else has. */
bool snowflock_ended(pid_t pid);

/*
 * Closes its stdin and waits until it has ended, at most `seconds`; kills it then. False if it had to be killed.
 * What it still says is dropped.
 */
bool snowflock_end(struct snowflock_child *child, int seconds);

#endif
