// sfpmix is the PMIx server of one virtual machine, or host, for one process group. Package pmix, its other
// half, says what the two say to each other.
//
// Threads. libpmix has one of its own, on which it makes its upcalls (calls.c). They must not wait for
// anything that this thread does; they do write frames, for whoever reads those never waits for the helper.
// The main thread reads frames and carries them out. It may wait for libpmix's thread, never the other way
// round. Both lock what they share: the output (frame.c) and the operations that wait for an answer
// (pending.c).
//
// Trust. Frames come from the launcher, whom this process obeys; they are checked so that a mistake is told
// apart from a bad network. What ranks say comes through libpmix.
#ifndef SFPMIX_H
#define SFPMIX_H

#include <pmix.h>
#include <pmix_server.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Kinds of frames; package pmix lists their fields.
enum {
	HELLO = 1, READY, CONNECTED, FINALIZED, ABORT, FENCE, DMODEX, MODEX, PUBLISH, LOOKUP, UNPUBLISH, SPAWN,
	CONNECT, DISCONNECT, MESSAGE, PONG, FAULT,
	JOB = 32, DONE, DATA, FOUND, SPAWNED, FETCH, PING, REFUSE
};

// What the launcher and the helper tell each other of how something went, for libpmix's numbers are its own.
enum { OK, FAILED, NOT_FOUND, TIMED_OUT, NOT_SUPPORTED, LOST, DUPLICATE, PARTIAL };

// WILDCARD is the rank that means all of a namespace.
#define WILDCARD UINT32_MAX

// ---- frame.c

// struct out is a frame to be written.
struct out {
	char *bytes;
	size_t length, room;
};
struct out begin(int kind);
void put_number(struct out *, uint32_t);
void put_bytes(struct out *, const void *, size_t); // behind their number
void put_raw(struct out *, const void *, size_t);   // without it
void put_string(struct out *, const char *); // NULL is empty
void put_proc(struct out *, const pmix_proc_t *);
void put_procs(struct out *, const pmix_proc_t[], size_t); // behind their number
void put_strings(struct out *, char **);                   // a list that ends in NULL, behind its number
void send_frame(struct out *); // and frees it

// struct in is a frame that came. Its fields are taken in order; one that is not there ends the process.
struct in {
	char *bytes;
	size_t at, length;
	int kind;
};
bool read_frame(struct in *); // false at the end of the input
uint32_t take_number(struct in *);
char *take_bytes(struct in *, size_t *length); // a copy, with a NUL behind it
char *take_string(struct in *);

// die tells the launcher, and on standard error, what went wrong, and ends the process.
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void *must(void *allocated); // not NULL

// ---- job.c

// register_job makes a namespace known to libpmix. With a node of it that is this one, clients are registered
// and the environment of each goes to the launcher. Main thread.
void register_job(struct in *);
// clean_up removes what this process has made in the file system.
void clean_up(void);
extern char session_dir[]; // this process's own

// ---- pending.c

// struct operation waits for the launcher's answer. The answer's kind says which callback it is for.
struct operation {
	uint32_t id;
	int answer; // DONE, DATA, FOUND or SPAWNED
	union {
		pmix_op_cbfunc_t done;
		pmix_modex_cbfunc_t data;
		pmix_lookup_cbfunc_t found;
		pmix_spawn_cbfunc_t spawned;
	} callback;
	void *context;
	struct operation *next;
};
// expect makes an operation and returns its number. It must come before its frame is written.
uint32_t expect(struct operation);
// settle gives the answer to an operation that an upcall began. Main thread.
void settle(struct in *);
pmix_status_t status_of(uint32_t outcome); // as libpmix numbers it

// ---- calls.c

extern pmix_server_module_t upcalls;
extern pmix_nspace_t own; // the namespace that is served here
// fetch asks libpmix for what a local rank has put, for a rank elsewhere. Main thread.
void fetch(struct in *);

// ---- names.c, spawn.c: more upcalls

pmix_status_t publish(const pmix_proc_t *, const pmix_info_t[], size_t, pmix_op_cbfunc_t, void *context);
pmix_status_t lookup(const pmix_proc_t *, char **keys, const pmix_info_t[], size_t, pmix_lookup_cbfunc_t, void *context);
pmix_status_t unpublish(const pmix_proc_t *, char **keys, const pmix_info_t[], size_t, pmix_op_cbfunc_t, void *context);
// settle_found gives the answer to a lookup.
void settle_found(struct in *, struct operation, uint32_t outcome);
pmix_status_t spawn(const pmix_proc_t *, const pmix_info_t job[], size_t, const pmix_app_t[], size_t, pmix_spawn_cbfunc_t,
		    void *context);
pmix_status_t connect_procs(const pmix_proc_t[], size_t, const pmix_info_t[], size_t, pmix_op_cbfunc_t, void *context);
pmix_status_t disconnect_procs(const pmix_proc_t[], size_t, const pmix_info_t[], size_t, pmix_op_cbfunc_t, void *context);

#endif
