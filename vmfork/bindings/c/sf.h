/*
 * sf.h: the VM fork API of the SnowFlock paper (table I) for C, and through
 * ISO_C_BINDING for Fortran (sf.f90).
 *
 *     sf_ticket ticket;
 *     if (sf_request_ticket(4, 0, &ticket) < 0)
 *             errx(1, "%s", sf_errmsg());
 *     int id = sf_clone(&ticket);
 *     if (id > 0) {
 *             work(id, ticket.granted);
 *             sf_exit(0);
 *     }
 *     sf_join(&ticket, -1, NULL);
 *     sf_ticket_free(&ticket);
 *
 * Errors. Every function that can fail returns an int: 0 or more is success, a
 * negative number is one of the codes below, and sf_errmsg() then says what
 * happened. Any function can return SF_EUNAVAILABLE (nobody answers at the
 * socket), SF_EVERSION (an answer that is not of this protocol) and SF_EINVALID
 * (a null pointer, an empty name); the comments list the others.
 *
 * Waiting. Calls block until they are answered; a signal that is handled does
 * not end them. A process that dies while it waits takes its call back.
 *
 * Threads. A call has a connection of its own and there is no global state, so
 * any thread may call at any time, and what one sees of errors is its own.
 *
 * The socket. $SF_SOCKET, else SF_SOCKET_PATH.
 *
 * The numbers in brackets are sections of the paper, Lagar-Cavilla et al., ACM
 * TOCS 29(1), 2011. Link with -lsf.
 */
#ifndef SF_H
#define SF_H

#ifdef __cplusplus
extern "C" {
#endif

#define SF_SOCKET_PATH "/run/mpirun-sf/sf.sock"

/* Sizes of the texts below in bytes, with their terminating NUL. */
#define SF_ID_SIZE 64    /* of tickets and checkpoints */
#define SF_NAME_SIZE 64  /* a host name's label */
#define SF_IP_SIZE 48    /* an address in text */
#define SF_HOST_SIZE 256 /* a full host name */

enum sf_error {
	SF_EINVALID = -1,      /* a request that makes no sense */
	SF_EUNKNOWN = -2,      /* no such ticket, checkpoint or VM, or no longer */
	SF_EREFUSED = -3,      /* not yours, or not allowed here */
	SF_ESTATE = -4,        /* not now: a ticket that was cloned already */
	SF_ERESOURCES = -5,    /* no room for even one clone */
	SF_EFAILED = -6,       /* the fork failed; the text says where */
	SF_ELOST = -7,         /* a clone died without sf_exit */
	SF_ETIMEOUT = -8,      /* the time given has passed */
	SF_EKILLED = -9,       /* the ticket was killed meanwhile */
	SF_ECLONED = -10,      /* this copy of the caller is in a clone that another's fork made */
	SF_EVERSION = -11,     /* the two sides do not understand each other */
	SF_EUNAVAILABLE = -12, /* nobody there to answer, or no memory to ask */
};

/* One clone that a ticket describes. */
typedef struct sf_clone_info {
	int id;                  /* 1...m; the parent is 0 */
	int vcpus;               /* virtual CPUs that are online in it */
	char name[SF_NAME_SIZE]; /* its host name */
	char ip[SF_IP_SIZE];     /* on the private network */
	char host[SF_HOST_SIZE]; /* the physical host that carries it */
} sf_clone_info;

/*
 * An allocation for m <= n clones (2.1). It knows whose it is: a ticket that
 * was requested for another VM is cloned, joined and killed there. Its copies
 * in the clones are of use too, to see who one's siblings are.
 */
typedef struct sf_ticket {
	char id[SF_ID_SIZE];
	char vm[SF_NAME_SIZE]; /* the VM that it forks; empty: the caller's */
	int asked;             /* n: clones, or processors if hierarchical */
	int granted;           /* m: length of clones */
	sf_clone_info *clones; /* released by sf_ticket_free */
} sf_ticket;

/* Who a VM is. */
typedef struct sf_identity {
	int id;                  /* the number in its ticket; 0: not a clone */
	int member;              /* the number in the job's private network */
	int vcpus;               /* virtual CPUs that are online */
	char name[SF_NAME_SIZE]; /* host name */
	char ip[SF_IP_SIZE];     /* on the private network */
	char host[SF_HOST_SIZE]; /* the physical host */
	char ticket[SF_ID_SIZE]; /* the one that it was made with; empty: not a clone */
} sf_identity;

/* One machine of the job. */
typedef struct sf_vm {
	int id;                  /* in its ticket; 0: not a clone */
	int member;              /* in the private network */
	int parent;              /* its parent's member; -1: none */
	char name[SF_NAME_SIZE]; /* what the functions for other VMs want */
	char ip[SF_IP_SIZE];
	char ticket[SF_ID_SIZE]; /* empty: not a clone */
} sf_vm;

/*
 * sf_request_ticket: reserve clones (table I, 2.1).
 *
 * Asks for n >= 1 clones and describes in *ticket the m <= n that are granted,
 * 1 <= m. With hierarchical != 0, n counts processors: clones have as many
 * virtual CPUs as the VM, together at most n, and the caller forks processes
 * in each. The ticket is to be released with sf_ticket_free, after an error too.
 *
 * Returns 0. SF_ERESOURCES: there is room for none.
 */
int sf_request_ticket(int n, int hierarchical, sf_ticket *ticket);

/*
 * sf_request_ticket_vm: the same for another VM, which the caller owns (the
 * transitive mode of 2.3), and with vcpus > 0 virtual CPUs in each clone; 0
 * leaves their number to the grant. vm NULL or "": the caller's own VM.
 *
 * SF_EUNKNOWN: no such VM. SF_EREFUSED: it is not the caller's descendant.
 */
int sf_request_ticket_vm(const char *vm, int n, int hierarchical, int vcpus, sf_ticket *ticket);

/*
 * sf_get_ticket: the ticket of this id, as it was granted. It is how a clone
 * learns of its siblings when sf_checkpoint_parent or sf_await_fork told it an
 * id. Release it with sf_ticket_free. SF_EUNKNOWN: none, or no longer.
 */
int sf_get_ticket(const char *id, sf_ticket *ticket);

/* sf_get_ticket_vm: the same of another VM's ticket. vm NULL or "": one's own. */
int sf_get_ticket_vm(const char *vm, const char *id, sf_ticket *ticket);

/*
 * sf_ticket_free: release the memory that *ticket points to. The clones and
 * their reservation stay: sf_join and sf_kill are what ends these.
 */
void sf_ticket_free(sf_ticket *ticket);

/*
 * sf_clone: fork the VM (table I, 2.1).
 *
 * Returns in m + 1 VMs: in the parent 0, when all clones are ready; in each
 * clone its id, 1...m. For a ticket of another VM, 0 to the caller. A clone
 * has the parent's memory, processes and disk as they were; its established
 * TCP connections are dead, its listening sockets are its own.
 *
 * SF_EUNKNOWN, SF_EREFUSED (not one's ticket), SF_ESTATE (cloned before),
 * SF_EFAILED, SF_EKILLED; then there are no clones.
 */
int sf_clone(const sf_ticket *ticket);

/*
 * sf_checkpoint_parent: keep the VM's state to make clones of later (table I, 2.3).
 *
 * Returns 0 when the checkpoint is made, and its id in checkpoint. It returns
 * once more in each clone that sf_create_clones makes of it: the clone's id, and
 * the ticket's id in ticket (which may be NULL, and is "" for id 0).
 *
 * SF_EFAILED, SF_ESTATE (a fork of this VM is going on).
 */
int sf_checkpoint_parent(char checkpoint[SF_ID_SIZE], char ticket[SF_ID_SIZE]);

/*
 * sf_checkpoint_vm: a checkpoint of another VM (2.3). Its clones wake up in
 * sf_await_fork. vm NULL or "": the same as sf_checkpoint_parent.
 */
int sf_checkpoint_vm(const char *vm, char checkpoint[SF_ID_SIZE], char ticket[SF_ID_SIZE]);

/*
 * sf_create_clones: make the ticket's clones of a checkpoint (table I, 2.3).
 *
 * Returns 0 when all are ready; they return from sf_checkpoint_parent.
 * Any number of tickets can be used with one checkpoint, one after another.
 *
 * SF_EUNKNOWN, SF_EREFUSED, SF_ESTATE (the ticket was used), SF_EFAILED, SF_EKILLED.
 */
int sf_create_clones(const char *checkpoint, const sf_ticket *ticket);

/*
 * sf_discard: forget a checkpoint, and free its memory once no clone reads from
 * it. Clones that were made of it live on. Returns 0. SF_EUNKNOWN, SF_EREFUSED.
 */
int sf_discard(const char *checkpoint);

/* sf_discard_vm: the same of another VM's checkpoint. vm NULL or "": one's own. */
int sf_discard_vm(const char *vm, const char *checkpoint);

/*
 * sf_exit: terminate the clone (table I).
 *
 * The whole VM ends, with everything that runs in it and without notice to it,
 * and its parent's sf_join gets status, 0...255. What others are to have must
 * have reached them: data in socket buffers is lost.
 *
 * Does not return in a clone. A caller that gets a value anyway, which is
 * negative, is in none
 * (SF_EREFUSED) or nobody answers (SF_EUNAVAILABLE).
 */
int sf_exit(int status);

/* sf_exit_vm: terminate another VM, a clone. Returns 0. SF_EUNKNOWN, SF_EREFUSED. */
int sf_exit_vm(const char *vm, int status);

/*
 * sf_join: wait until all clones of the ticket have called sf_exit (table I).
 *
 * Waits timeout seconds, at most 1e6, or for ever if it is negative. Then the clones are gone
 * and the ticket is discarded; *ticket still wants sf_ticket_free.
 * statuses[i] becomes the status of ticket->clones[i], so it has ticket->granted
 * elements; it may be NULL.
 *
 * SF_ELOST: a clone died without sf_exit, the text says which, its status is
 * -1, and the others' are theirs. SF_ETIMEOUT: the
 * ticket stays. SF_EUNKNOWN: joined or killed before. SF_EREFUSED, SF_EKILLED.
 */
int sf_join(const sf_ticket *ticket, double timeout, int *statuses);

/*
 * sf_kill: kill all clones of the ticket at once and discard it (table I). Also
 * for a ticket that was never cloned. Returns 0. SF_EUNKNOWN, SF_EREFUSED.
 */
int sf_kill(const sf_ticket *ticket);

/* sf_kill_clone: kill one clone, by its id in the ticket. SF_EUNKNOWN, SF_EREFUSED. */
int sf_kill_clone(const sf_ticket *ticket, int id);

/*
 * sf_await_fork: the callback of forks that others trigger (2.3).
 *
 * Blocks. In a clone that another's call made of this VM it returns the clone's
 * id, and the ticket's id in ticket, which may be NULL. In the VM that was
 * forked it goes on blocking.
 */
int sf_await_fork(char ticket[SF_ID_SIZE]);

/* sf_whoami: who the caller's VM is, since its last fork. Returns 0. */
int sf_whoami(sf_identity *identity);

/*
 * sf_list_vms: all machines of the job. Fills at most max elements of vms and
 * returns how many there are, which can be more.
 */
int sf_list_vms(sf_vm *vms, int max);

/*
 * sf_errmsg: what the last error in this thread was, one line of text. It stays
 * until the next call that fails. Never NULL.
 */
const char *sf_errmsg(void);

/* sf_strerror: what a code means in general. Never NULL; 0 and more: "success". */
const char *sf_strerror(int code);

/* sf_kind: a code's word in the protocol ("unknown"). Never NULL; 0 and more: "ok". */
const char *sf_kind(int code);

#ifdef __cplusplus
}
#endif

#endif
