/*
 * sf.c: one call, one connection, one line each way.
 *
 *   1. begin and add write the request, values encoded.
 *   2. call connects, sends it, and reads the line that answers it.
 *   3. parse checks and decodes that line in place, into fields.
 *   4. The functions of sf.h take what they want from the fields.
 *
 * The reply is not trusted: whatever comes, a function returns SF_EVERSION or a
 * value that is complete.
 */
#define _GNU_SOURCE
#include "sf.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 1 << 20, LONGEST_WAIT = 1000000 };

static const struct {
	const char *kind, *meaning;
} kinds[] = {
	{"ok", "success"},
	{"invalid", "invalid request"},
	{"unknown", "no such ticket, checkpoint or VM"},
	{"refused", "refused"},
	{"state", "not possible in this state"},
	{"resources", "not enough resources for a clone"},
	{"failed", "the fork failed"},
	{"lost", "a clone died without exit"},
	{"timeout", "timed out"},
	{"killed", "the ticket was killed"},
	{"cloned", "the caller is in a clone that another's fork made"},
	{"version", "the answer is not of this protocol"},
	{"unavailable", "nobody answers the call"},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static __thread char message[1024];

const char *sf_errmsg(void)
{
	return message;
}

static int known(int code)
{
	return code < 0 && code > -KINDS;
}

const char *sf_strerror(int code)
{
	return code >= 0 ? kinds[0].meaning : known(code) ? kinds[-code].meaning : "unknown code";
}

const char *sf_kind(int code)
{
	return code >= 0 ? kinds[0].kind : known(code) ? kinds[-code].kind : "unknown code";
}

static int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int fail(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(message, sizeof message, format, args);
	va_end(args);
	return code;
}

/* A request in the making. An error stays in it until call looks. */
struct request {
	const char *name; /* of the call, for messages */
	char *data;
	size_t length, space;
	int error;
};

static void put(struct request *r, const char *data, size_t length)
{
	if (r->error)
		return;
	if (length > LINE_MAX_BYTES - r->length) {
		r->error = fail(SF_EINVALID, "%s: the request is longer than 1 MiB", r->name);
		return;
	}
	if (r->length + length > r->space) {
		size_t space = 2 * (r->length + length) + 256;
		char *grown = realloc(r->data, space);

		if (!grown) {
			r->error = fail(SF_EUNAVAILABLE, "%s: out of memory", r->name);
			return;
		}
		r->data = grown;
		r->space = space;
	}
	memcpy(r->data + r->length, data, length);
	r->length += length;
}

static struct request begin(const char *name)
{
	struct request r = {.name = name};

	put(&r, name, strlen(name));
	return r;
}

/* Bytes beyond ASCII are encoded as well: they may not be UTF-8, and the line is. */
static void add(struct request *r, const char *key, const char *value)
{
	if (!value || !*value) {
		if (!r->error)
			r->error = fail(SF_EINVALID, "%s: no %s given", r->name, key);
		return;
	}
	put(r, " ", 1);
	put(r, key, strlen(key));
	put(r, "=", 1);
	for (; *value; value++) {
		unsigned char c = (unsigned char)*value;
		char encoded[4];

		if (c > ' ' && c != '%' && c < 0x7f) {
			put(r, value, 1);
			continue;
		}
		snprintf(encoded, sizeof encoded, "%%%02X", (unsigned)c);
		put(r, encoded, 3);
	}
}

static void add_number(struct request *r, const char *key, int value)
{
	char digits[16];

	snprintf(digits, sizeof digits, "%d", value);
	add(r, key, digits);
}

/* Not by %g: the decimal point is not the locale's. */
static void add_seconds(struct request *r, const char *key, double seconds)
{
	char digits[32];
	long long ms;
	int length;

	if (!(seconds < LONGEST_WAIT))
		seconds = LONGEST_WAIT;
	ms = (long long)(seconds * 1000 + 0.5);
	length = snprintf(digits, sizeof digits, "%lld.%03lld", ms / 1000, ms % 1000);
	while (digits[length - 1] == '0')
		digits[--length] = 0;
	if (digits[length - 1] == '.')
		digits[--length] = 0;
	add(r, key, digits);
}

static void add_vm(struct request *r, const char *vm)
{
	if (vm && *vm)
		add(r, "vm", vm);
}

static void add_ticket(struct request *r, const sf_ticket *ticket)
{
	add(r, "ticket", ticket ? ticket->id : NULL);
	add_vm(r, ticket ? ticket->vm : NULL);
}

/* A reply's fields: key, NUL, value, NUL, one after another up to end. */
struct reply {
	const char *name; /* of the call, for messages */
	char *buffer;
	const char *fields, *end;
};

/*
 * The value of the first field of this key after that of the value before, from
 * the start if that is NULL. NULL: there is none.
 */
static const char *next_field(const struct reply *r, const char *before, const char *key)
{
	const char *at = before ? before + strlen(before) + 1 : r->fields;

	while (at < r->end) {
		const char *value = at + strlen(at) + 1;

		if (!strcmp(at, key))
			return value;
		at = value + strlen(value) + 1;
	}
	return NULL;
}

static int garbled(const char *call, const char *what)
{
	return fail(SF_EVERSION, "%s: the answer is not of this protocol: %s", call, what);
}

static int hex(unsigned char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int word_char(unsigned char c, int first)
{
	return (c >= 'a' && c <= 'z') || (!first && (c == '-' || (c >= '0' && c <= '9')));
}

/*
 * Decode line, which a NUL ends at length, into fields that are never longer
 * than what they were. Gives 1 for ok, 0 for error, or SF_EVERSION.
 */
static int parse(struct reply *r, size_t length)
{
	char *in = r->buffer, *out, *end = r->buffer + length;
	int ok = length >= 2 && !memcmp(in, "ok", 2);

	if (!ok && (length < 5 || memcmp(in, "error", 5) != 0))
		return garbled(r->name, "neither ok nor error");
	in += ok ? 2 : 5;
	out = r->buffer;
	r->fields = out;
	while (in < end) {
		int first = 1;

		if (*in++ != ' ')
			return garbled(r->name, "no space between fields");
		for (; in < end && word_char((unsigned char)*in, first); first = 0)
			*out++ = *in++;
		if (first || in == end || *in++ != '=')
			return garbled(r->name, "a field that is not KEY=VALUE");
		*out++ = 0;
		for (; in < end && *in != ' '; in++) {
			unsigned char c = (unsigned char)*in;

			if (c == '%') {
				int high = end - in > 2 ? hex((unsigned char)in[1]) : -1;
				int low = high >= 0 ? hex((unsigned char)in[2]) : -1;

				if (low < 0)
					return garbled(r->name, "% without two hexadecimal digits");
				c = (unsigned char)(high << 4 | low);
				if (!c)
					return garbled(r->name, "a NUL in a value");
				in += 2;
			} else if (c < ' ' || c == 0x7f) {
				return garbled(r->name, "a control byte");
			}
			*out++ = (char)c;
		}
		*out++ = 0;
	}
	r->end = out;
	return ok;
}

static int dial(const char *call)
{
	const char *path = getenv("SF_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd, result;

	if (!path || !*path)
		path = SF_SOCKET_PATH;
	if (strlen(path) >= sizeof address.sun_path)
		return fail(SF_EUNAVAILABLE, "%s: the path in SF_SOCKET is too long: %s", call, path);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail(SF_EUNAVAILABLE, "%s: make socket: %s", call, strerror(errno));
	do /* an interrupted connect of this family has not begun */
		result = connect(fd, (struct sockaddr *)&address, sizeof address);
	while (result < 0 && errno == EINTR);
	if (result < 0) {
		int error = errno;

		close(fd);
		return fail(SF_EUNAVAILABLE, "%s: connect to %s: %s (is this a VM of mpirun-sf?)", call, path,
			    strerror(error));
	}
	return fd;
}

static int send_all(int fd, const struct request *r)
{
	size_t sent = 0;

	while (sent < r->length) {
		ssize_t n = send(fd, r->data + sent, r->length - sent, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			return -1;
		if (n > 0)
			sent += (size_t)n;
	}
	return 0;
}

/* Gives the line's length without LF, or an error. */
static long receive_line(int fd, struct reply *reply)
{
	size_t length = 0, space = 0;

	for (;;) {
		char *lf;
		ssize_t n;

		if (length == space) {
			char *grown;

			if (space > LINE_MAX_BYTES)
				return garbled(reply->name, "a line longer than 1 MiB");
			space = space ? 2 * space : 1024;
			grown = realloc(reply->buffer, space);
			if (!grown)
				return fail(SF_EUNAVAILABLE, "%s: out of memory", reply->name);
			reply->buffer = grown;
		}
		n = recv(fd, reply->buffer + length, space - length, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail(SF_EUNAVAILABLE, "%s: read answer: %s", reply->name, strerror(errno));
		if (n == 0 && length == 0)
			return fail(SF_EUNAVAILABLE, "%s: the connection ended without an answer", reply->name);
		if (n == 0)
			return garbled(reply->name, "the line ends in the middle");
		lf = memchr(reply->buffer + length, '\n', (size_t)n);
		length += (size_t)n;
		if (lf && lf - reply->buffer >= LINE_MAX_BYTES)
			return garbled(reply->name, "a line longer than 1 MiB");
		if (lf)
			return lf - reply->buffer;
	}
}

static int remote_error(const struct reply *reply)
{
	const char *kind = next_field(reply, NULL, "kind"), *text = next_field(reply, NULL, "text");
	int i;

	if (!kind || !text)
		return garbled(reply->name, "an error without kind or text");
	for (i = 1; i < KINDS; i++)
		if (!strcmp(kind, kinds[i].kind))
			return fail(-i, "%s: %s", reply->name, text);
	return fail(SF_EFAILED, "%s: %s: %s", reply->name, kind, text);
}

/* Whatever it gives, the request is gone, and the reply wants to be freed. */
static int call(struct request *request, struct reply *reply)
{
	int fd = -1, result;
	long length;

	*reply = (struct reply){.name = request->name};
	put(request, "\n", 1);
	result = request->error;
	if (!result)
		result = fd = dial(request->name);
	/* A server that refuses can answer and close before it has read everything, so its answer counts. */
	if (fd >= 0 && send_all(fd, request) < 0 && errno != EPIPE && errno != ECONNRESET)
		result = fail(SF_EUNAVAILABLE, "%s: send: %s", request->name, strerror(errno));
	free(request->data);
	request->data = NULL;
	if (result >= 0) {
		length = receive_line(fd, reply);
		result = length < 0 ? (int)length : parse(reply, (size_t)length);
		if (result == 0)
			result = remote_error(reply);
	}
	if (fd >= 0)
		close(fd);
	return result < 0 ? result : 0;
}

static int call_plain(struct request *request)
{
	struct reply reply;
	int result = call(request, &reply);

	free(reply.buffer);
	return result;
}

/* Decimal, the whole text. -1: it is none. */
static int number(const char *text, int *value)
{
	char *end;
	long n;

	if (!(*text >= '0' && *text <= '9') && !(*text == '-' && text[1] >= '0' && text[1] <= '9'))
		return -1;
	errno = 0;
	n = strtol(text, &end, 10);
	if (errno || *end || n < INT_MIN || n > INT_MAX)
		return -1;
	*value = (int)n;
	return 0;
}

static int copy(char *to, size_t size, const char *from, size_t length)
{
	if (length >= size)
		return -1;
	memcpy(to, from, length);
	to[length] = 0;
	return 0;
}

/* Part i of a tuple. -1: there is none, or it has no room. */
static int part(const char *tuple, int i, char *to, size_t size)
{
	for (; i > 0; i--) {
		tuple = strchr(tuple, ':');
		if (!tuple)
			return -1;
		tuple++;
	}
	return copy(to, size, tuple, strcspn(tuple, ":"));
}

static int part_number(const char *tuple, int i, int *value)
{
	char digits[16];

	return part(tuple, i, digits, sizeof digits) < 0 ? -1 : number(digits, value);
}

/* The two below leave a field's absence to the caller where it is optional. */
static int take_text(const struct reply *r, const char *key, char *to, size_t size, int optional)
{
	const char *value = next_field(r, NULL, key);

	if (size)
		*to = 0;
	if (!value && optional)
		return 0;
	if (!value)
		return fail(SF_EVERSION, "%s: the answer lacks %s", r->name, key);
	if (copy(to, size, value, strlen(value)) < 0)
		return fail(SF_EVERSION, "%s: the answer's %s is too long", r->name, key);
	return 0;
}

static int take_number(const struct reply *r, const char *key, int *to)
{
	const char *value = next_field(r, NULL, key);

	if (!value)
		return fail(SF_EVERSION, "%s: the answer lacks %s", r->name, key);
	if (number(value, to) < 0)
		return fail(SF_EVERSION, "%s: the answer's %s is no number: %s", r->name, key, value);
	return 0;
}

/* A clone's id; a negative one would look like an error. */
static int take_id(const struct reply *r)
{
	int id, result = take_number(r, "id", &id);

	if (result < 0)
		return result;
	return id >= 0 ? id : fail(SF_EVERSION, "%s: the answer's id is negative", r->name);
}

static int take_clones(const struct reply *r, sf_ticket *ticket)
{
	const char *tuple = NULL;
	int count = 0;

	while ((tuple = next_field(r, tuple, "clone")))
		count++;
	if (count != ticket->granted)
		return fail(SF_EVERSION, "%s: %d clones are granted and %d described", r->name, ticket->granted, count);
	if (count == 0)
		return 0;
	ticket->clones = calloc((size_t)count, sizeof *ticket->clones);
	if (!ticket->clones)
		return fail(SF_EUNAVAILABLE, "%s: out of memory", r->name);
	count = 0;
	while ((tuple = next_field(r, tuple, "clone"))) {
		sf_clone_info *c = &ticket->clones[count++];

		if (part_number(tuple, 0, &c->id) < 0 || part(tuple, 1, c->name, sizeof c->name) < 0 ||
		    part(tuple, 2, c->ip, sizeof c->ip) < 0 || part_number(tuple, 3, &c->vcpus) < 0 ||
		    part(tuple, 4, c->host, sizeof c->host) < 0)
			return fail(SF_EVERSION, "%s: not a clone: %s", r->name, tuple);
	}
	return 0;
}

/* The request's answer into *ticket, which is left empty if that fails. */
static int call_ticket(struct request *request, const char *vm, sf_ticket *ticket)
{
	struct reply reply;
	int result = call(request, &reply);

	memset(ticket, 0, sizeof *ticket);
	if (result == 0 && vm && copy(ticket->vm, sizeof ticket->vm, vm, strlen(vm)) < 0)
		result = fail(SF_EINVALID, "%s: the VM's name is too long", reply.name);
	if (result == 0)
		result = take_text(&reply, "ticket", ticket->id, sizeof ticket->id, 0);
	if (result == 0)
		result = take_number(&reply, "asked", &ticket->asked);
	if (result == 0)
		result = take_number(&reply, "granted", &ticket->granted);
	if (result == 0)
		result = take_clones(&reply, ticket);
	free(reply.buffer);
	if (result < 0)
		sf_ticket_free(ticket);
	return result;
}

int sf_request_ticket(int n, int hierarchical, sf_ticket *ticket)
{
	return sf_request_ticket_vm(NULL, n, hierarchical, 0, ticket);
}

int sf_request_ticket_vm(const char *vm, int n, int hierarchical, int vcpus, sf_ticket *ticket)
{
	struct request request;

	if (!ticket)
		return fail(SF_EINVALID, "request-ticket: no place for the ticket");
	request = begin("request-ticket");
	add_number(&request, "clones", n);
	if (hierarchical)
		add(&request, "hierarchical", "1");
	if (vcpus)
		add_number(&request, "vcpus", vcpus);
	add_vm(&request, vm);
	return call_ticket(&request, vm, ticket);
}

int sf_get_ticket(const char *id, sf_ticket *ticket)
{
	return sf_get_ticket_vm(NULL, id, ticket);
}

int sf_get_ticket_vm(const char *vm, const char *id, sf_ticket *ticket)
{
	struct request request;

	if (!ticket)
		return fail(SF_EINVALID, "ticket: no place for the ticket");
	request = begin("ticket");
	add(&request, "ticket", id);
	add_vm(&request, vm);
	return call_ticket(&request, vm, ticket);
}

void sf_ticket_free(sf_ticket *ticket)
{
	if (!ticket)
		return;
	free(ticket->clones);
	memset(ticket, 0, sizeof *ticket);
}

int sf_clone(const sf_ticket *ticket)
{
	struct request request = begin("clone");
	struct reply reply;
	int result;

	add_ticket(&request, ticket);
	result = call(&request, &reply);
	if (result == 0)
		result = take_id(&reply);
	free(reply.buffer);
	return result;
}

int sf_checkpoint_parent(char checkpoint[SF_ID_SIZE], char ticket[SF_ID_SIZE])
{
	return sf_checkpoint_vm(NULL, checkpoint, ticket);
}

int sf_checkpoint_vm(const char *vm, char checkpoint[SF_ID_SIZE], char ticket[SF_ID_SIZE])
{
	struct request request;
	struct reply reply;
	char unwanted[SF_ID_SIZE];
	int result;

	if (!checkpoint)
		return fail(SF_EINVALID, "checkpoint-parent: no place for the checkpoint's id");
	request = begin("checkpoint-parent");
	add_vm(&request, vm);
	result = call(&request, &reply);
	*checkpoint = 0;
	if (ticket)
		*ticket = 0;
	if (result == 0)
		result = take_text(&reply, "checkpoint", checkpoint, SF_ID_SIZE, 0);
	if (result == 0)
		result = take_text(&reply, "ticket", ticket ? ticket : unwanted, SF_ID_SIZE, 1);
	if (result == 0)
		result = take_id(&reply);
	free(reply.buffer);
	return result;
}

int sf_create_clones(const char *checkpoint, const sf_ticket *ticket)
{
	struct request request = begin("create-clones");

	add(&request, "checkpoint", checkpoint);
	add_ticket(&request, ticket);
	return call_plain(&request);
}

int sf_discard(const char *checkpoint)
{
	return sf_discard_vm(NULL, checkpoint);
}

int sf_discard_vm(const char *vm, const char *checkpoint)
{
	struct request request = begin("discard");

	add(&request, "checkpoint", checkpoint);
	add_vm(&request, vm);
	return call_plain(&request);
}

int sf_exit(int status)
{
	struct request request = begin("exit");
	int result;

	add_number(&request, "status", status);
	result = call_plain(&request);
	return result < 0 ? result : fail(SF_EVERSION, "exit: answered, and the VM still runs");
}

int sf_exit_vm(const char *vm, int status)
{
	struct request request = begin("exit");

	add_number(&request, "status", status);
	add(&request, "vm", vm);
	return call_plain(&request);
}

static int take_statuses(const struct reply *r, const sf_ticket *ticket, int *statuses)
{
	const char *tuple = NULL;
	int i, id, status;

	for (i = 0; statuses && i < ticket->granted; i++)
		statuses[i] = -1;
	while ((tuple = next_field(r, tuple, "status"))) {
		if (part_number(tuple, 0, &id) < 0 || part_number(tuple, 1, &status) < 0)
			return fail(SF_EVERSION, "%s: not a status: %s", r->name, tuple);
		for (i = 0; statuses && i < ticket->granted; i++)
			if (ticket->clones[i].id == id)
				statuses[i] = status;
	}
	return 0;
}

int sf_join(const sf_ticket *ticket, double timeout, int *statuses)
{
	struct request request = begin("join");
	struct reply reply;
	int result;

	add_ticket(&request, ticket);
	if (timeout >= 0)
		add_seconds(&request, "timeout", timeout);
	result = call(&request, &reply);
	if (result == 0 || result == SF_ELOST) {
		int taken = take_statuses(&reply, ticket, statuses);

		result = taken < 0 ? taken : result;
	}
	free(reply.buffer);
	return result;
}

int sf_kill(const sf_ticket *ticket)
{
	struct request request = begin("kill");

	add_ticket(&request, ticket);
	return call_plain(&request);
}

int sf_kill_clone(const sf_ticket *ticket, int id)
{
	struct request request = begin("kill");

	add_ticket(&request, ticket);
	add_number(&request, "clone", id);
	return call_plain(&request);
}

int sf_await_fork(char ticket[SF_ID_SIZE])
{
	struct request request = begin("await-fork");
	struct reply reply;
	char unwanted[SF_ID_SIZE];
	int result = call(&request, &reply);

	if (ticket)
		*ticket = 0;
	if (result == 0)
		result = take_text(&reply, "ticket", ticket ? ticket : unwanted, SF_ID_SIZE, 0);
	if (result == 0)
		result = take_id(&reply);
	free(reply.buffer);
	return result;
}

int sf_whoami(sf_identity *identity)
{
	struct request request;
	struct reply reply;
	int result;

	if (!identity)
		return fail(SF_EINVALID, "whoami: no place for the identity");
	request = begin("whoami");
	memset(identity, 0, sizeof *identity);
	result = call(&request, &reply);
	if (result == 0)
		result = take_number(&reply, "id", &identity->id);
	if (result == 0)
		result = take_number(&reply, "member", &identity->member);
	if (result == 0)
		result = take_number(&reply, "vcpus", &identity->vcpus);
	if (result == 0)
		result = take_text(&reply, "name", identity->name, sizeof identity->name, 0);
	if (result == 0)
		result = take_text(&reply, "ip", identity->ip, sizeof identity->ip, 0);
	if (result == 0)
		result = take_text(&reply, "host", identity->host, sizeof identity->host, 0);
	if (result == 0)
		result = take_text(&reply, "ticket", identity->ticket, sizeof identity->ticket, 1);
	free(reply.buffer);
	return result;
}

/* NAME:MEMBER:IP:PARENT-MEMBER:TICKET:ID; the last three are empty for who has none. */
static int take_vm(const char *tuple, sf_vm *vm)
{
	char parent[16], id[16];

	memset(vm, 0, sizeof *vm);
	vm->parent = -1;
	if (part(tuple, 0, vm->name, sizeof vm->name) < 0 || part_number(tuple, 1, &vm->member) < 0 ||
	    part(tuple, 2, vm->ip, sizeof vm->ip) < 0 || part(tuple, 3, parent, sizeof parent) < 0 ||
	    part(tuple, 4, vm->ticket, sizeof vm->ticket) < 0 || part(tuple, 5, id, sizeof id) < 0)
		return -1;
	if (*parent && number(parent, &vm->parent) < 0)
		return -1;
	return *id ? number(id, &vm->id) : 0;
}

int sf_list_vms(sf_vm *vms, int max)
{
	struct request request;
	struct reply reply;
	const char *tuple = NULL;
	int count = 0, result;

	if (!vms && max > 0)
		return fail(SF_EINVALID, "list: no place for the VMs");
	request = begin("list");
	result = call(&request, &reply);
	while (result == 0 && (tuple = next_field(&reply, tuple, "vm"))) {
		sf_vm vm;

		if (take_vm(tuple, &vm) < 0)
			result = fail(SF_EVERSION, "%s: not a VM: %s", reply.name, tuple);
		else if (count < max)
			vms[count] = vm;
		count++;
	}
	free(reply.buffer);
	return result < 0 ? result : count;
}
