// Frames: what goes between the helper and the launcher, on standard input and output.
#include "sfpmix.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The launcher's frames are as large as what all ranks say of themselves.
#define MAX_FRAME (1u << 30)

void *must(void *p)
{
	if (p == NULL)
		die("out of memory");
	return p;
}

static void reserve(struct out *o, size_t more)
{
	if (o->length + more <= o->room)
		return;
	o->room = 2 * (o->length + more);
	o->bytes = must(realloc(o->bytes, o->room));
}

static void store(char *at, uint32_t n)
{
	at[0] = (char)(n >> 24);
	at[1] = (char)(n >> 16);
	at[2] = (char)(n >> 8);
	at[3] = (char)n;
}

static uint32_t load(const char *at)
{
	const unsigned char *b = (const unsigned char *)at;
	return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

struct out begin(int kind)
{
	struct out o = {0};
	reserve(&o, 256);
	o.length = 4; // send_frame puts the length there
	o.bytes[o.length++] = (char)kind;
	return o;
}

void put_number(struct out *o, uint32_t n)
{
	reserve(o, 4);
	store(o->bytes + o->length, n);
	o->length += 4;
}

void put_raw(struct out *o, const void *bytes, size_t n)
{
	if (n == 0)
		return;
	reserve(o, n);
	memcpy(o->bytes + o->length, bytes, n);
	o->length += n;
}

void put_bytes(struct out *o, const void *bytes, size_t n)
{
	put_number(o, (uint32_t)n);
	put_raw(o, bytes, n);
}

void put_string(struct out *o, const char *s)
{
	put_bytes(o, s, s == NULL ? 0 : strlen(s));
}

void put_proc(struct out *o, const pmix_proc_t *p)
{
	put_string(o, p->nspace);
	put_number(o, p->rank == PMIX_RANK_WILDCARD ? WILDCARD : p->rank);
}

void put_procs(struct out *o, const pmix_proc_t procs[], size_t n)
{
	put_number(o, (uint32_t)n);
	for (size_t i = 0; i < n; i++)
		put_proc(o, &procs[i]);
}

void put_strings(struct out *o, char **strings)
{
	uint32_t n = 0;
	while (strings != NULL && strings[n] != NULL)
		n++;
	put_number(o, n);
	for (uint32_t i = 0; i < n; i++)
		put_string(o, strings[i]);
}

void send_frame(struct out *o)
{
	static pthread_mutex_t whole = PTHREAD_MUTEX_INITIALIZER;
	store(o->bytes, (uint32_t)(o->length - 4));
	pthread_mutex_lock(&whole);
	for (size_t done = 0; done < o->length;) {
		ssize_t n = write(STDOUT_FILENO, o->bytes + done, o->length - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) { // the launcher is gone, and with it what this process is for
			clean_up();
			_exit(1);
		}
		done += (size_t)n;
	}
	pthread_mutex_unlock(&whole);
	free(o->bytes);
	o->bytes = NULL;
}

// read_all is false at an end of the input before the first byte.
static bool read_all(char *to, size_t n)
{
	for (size_t done = 0; done < n;) {
		ssize_t k = read(STDIN_FILENO, to + done, n - done);
		if (k < 0 && errno == EINTR)
			continue;
		if (k == 0 && done == 0)
			return false;
		if (k <= 0)
			die("the launcher's frame is cut off");
		done += (size_t)k;
	}
	return true;
}

bool read_frame(struct in *f)
{
	char length[4];
	if (!read_all(length, sizeof length))
		return false;
	f->length = load(length);
	if (f->length == 0 || f->length > MAX_FRAME)
		die("a frame of %zu bytes: at most %u are expected", f->length, MAX_FRAME);
	f->bytes = must(malloc(f->length));
	if (!read_all(f->bytes, f->length))
		die("the launcher's frame is cut off");
	f->kind = (unsigned char)f->bytes[0];
	f->at = 1;
	return true;
}

static const char *take(struct in *f, size_t n)
{
	if (n > f->length - f->at)
		die("a frame of kind %d ends early", f->kind);
	f->at += n;
	return f->bytes + f->at - n;
}

uint32_t take_number(struct in *f)
{
	return load(take(f, 4));
}

char *take_bytes(struct in *f, size_t *length)
{
	*length = take_number(f);
	const char *from = take(f, *length);
	char *copy = must(malloc(*length + 1));
	memcpy(copy, from, *length);
	copy[*length] = 0;
	return copy;
}

char *take_string(struct in *f)
{
	size_t n;
	return take_bytes(f, &n);
}

void die(const char *format, ...)
{
	char text[512];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	fprintf(stderr, "sfpmix: %s\n", text);
	struct out o = begin(FAULT);
	put_string(&o, text);
	send_frame(&o);
	clean_up();
	_exit(1);
}
