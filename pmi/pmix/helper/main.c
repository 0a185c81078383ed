// The helper's life: it says hello, is told what it serves, and serves that until its input ends.
#include "sfpmix.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROTOCOL 1

char session_dir[64];

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	strcpy(session_dir, "/tmp/sfpmix-XXXXXX");
	if (mkdtemp(session_dir) == NULL) {
		session_dir[0] = 0;
		die("make a directory in /tmp: %s", strerror(errno));
	}
	struct out hello = begin(HELLO);
	put_string(&hello, "mpirun-sf pmix");
	put_number(&hello, PROTOCOL);
	put_string(&hello, PMIx_Get_version());
	send_frame(&hello);

	// In memory rather than in files: the ranks of one machine are few, and a file's lock outlives who died with it.
	setenv("PMIX_MCA_gds", "hash", 1);
	pmix_info_t where[2];
	PMIX_INFO_LOAD(&where[0], PMIX_SERVER_TMPDIR, session_dir, PMIX_STRING);
	PMIX_INFO_LOAD(&where[1], PMIX_SYSTEM_TMPDIR, session_dir, PMIX_STRING);
	pmix_status_t rc = PMIx_server_init(&upcalls, where, 2);
	if (rc != PMIX_SUCCESS)
		die("start libpmix's server: %s", PMIx_Error_string(rc));

	struct in f;
	while (read_frame(&f)) {
		switch (f.kind) {
		case JOB:
			register_job(&f);
			break;
		case DONE:
		case DATA:
		case FOUND:
		case SPAWNED:
			settle(&f);
			break;
		case FETCH:
			fetch(&f);
			break;
		case PING: {
			struct out o = begin(PONG);
			put_number(&o, take_number(&f));
			send_frame(&o);
			break;
		}
		case REFUSE:
			die("refused: %s", take_string(&f));
		default:
			die("the launcher sent a frame of kind %d", f.kind);
		}
		free(f.bytes);
	}
	// Ranks may still be connected, and PMIx_server_finalize would wait for them.
	clean_up();
	_exit(0);
}
