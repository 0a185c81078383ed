package difftest

// row is a command line of a shell, in which mpiexec is one or the other. Beside it
// are the program ends of testdata and the files of the test (files).
type row struct {
	line string
	// why says why the two differ, if they are meant to, and ours is then what
	// this mpiexec does.
	why  string
	ours *outcome
	// sometimes says that Hydra does it now and then.
	sometimes bool
}

// outcome is what comes of a line. What a text of is to hold is sorted by lines, for
// ranks write at the same time.
type outcome struct {
	stdout string // with numbers of processes as PID
	ranks  string // what ranks wrote to standard error
	said   bool   // mpiexec itself wrote to standard error
	status int
}

// files are in the folder that lines run in.
var files = map[string]string{
	"machines": "# two nodes that are one machine\nlocalhost:2 # fast\n\n  HOST  binding=user:0\n",
	"odd":      "localhost:2 speed=fast\n",
	"programs": "-n 1 -env A 1 echo a\n-n 2 echo b # and c\n",
	"options":  "-genv A conf -n 2\n",
	"script":   "echo from a file that names no shell\n",
}

// rank says where a rank is.
const rank = `sh -c 'echo $PMI_RANK of $PMI_SIZE, $MPI_LOCALRANKID of $MPI_LOCALNRANKS on $MPIR_CVAR_CH3_INTERFACE_HOSTNAME'`

var table = []row{
	// How many, and of what.
	{line: `mpiexec echo one for each slot, and there is one`},
	{line: `mpiexec -n 3 echo hi`},
	{line: `mpiexec -np 2 echo hi`},
	{line: `mpiexec --np=2 echo hi`},
	{line: `mpiexec ---NP 2 echo hi`},
	{line: `mpiexec -n 0 echo is as without`},
	{line: `mpiexec -n -1 echo is as without`},
	{line: `mpiexec -n 2 echo a -n 3 : -n 1 echo b`},
	{line: `mpiexec -n 1 ./ends where : -n 2 ./ends where`},
	{line: `mpiexec -n 2 sh script`},
	{line: `chmod +x script; mpiexec -n 2 ./script`},
	{line: `mpiexec -n 8 ./ends`},

	// Where.
	{line: `mpiexec -n 2 ` + rank},
	{line: `mpiexec -hosts localhost,HOST -n 4 ` + rank},
	{line: `mpiexec -host localhost:2,HOST -n 6 ` + rank},
	{line: `mpiexec -hosts localhost:2,HOST:1 ` + rank},
	{line: `mpiexec -hosts localhost,localhost,HOST -n 4 ` + rank},
	{line: `mpiexec -hosts localhost,HOST,localhost -n 3 ` + rank},
	{line: `mpiexec -hosts localhost:2,HOST:3 -order-nodes DOWN -n 5 ` + rank},
	{line: `mpiexec -ppn 2 -hosts localhost,HOST -n 4 ` + rank},
	{line: `mpiexec -f machines -n 4 ` + rank},
	{line: `HYDRA_HOST_FILE=machines mpiexec ` + rank},
	{line: `mpiexec -hosts localhost,HOST -n 4 ./ends where`},
	{line: `mpiexec -launcher fork -n 1 ` + rank},
	{line: `mpiexec -disable-hostname-propagation -n 1 ` + rank},
	{line: `mpiexec -iface lo -n 1 sh -c 'env | grep ^MPIR_'`},
	{line: `mpiexec -usize 7 -n 1 ./ends where`},
	{line: `mpiexec -usize SYSTEM -hosts localhost:3 -n 1 ./ends where`},
	{line: `mpiexec -bind-to rr -n 2 sh -c 'grep Cpus_allowed_list /proc/self/status'`},
	{line: `mpiexec -gpus-per-proc 2 -n 2 sh -c 'echo $CUDA_VISIBLE_DEVICES'`},
	{line: `mpiexec -pmi-port -n 2 ./ends where`},

	// In which environment and folder.
	{line: `mpiexec -genv A 1 -env B 2 -n 1 sh -c 'echo $A $B' : -env A 3 -n 1 sh -c 'echo $A $B'`},
	{line: `mpiexec -genv A=1=2 -n 1 sh -c 'echo $A'`},
	{line: `A=1 B=2 mpiexec -envlist A -env C 3 -n 1 sh -c 'echo $A $C'`},
	{
		line: `A=1 mpiexec -genvnone -n 1 sh -c 'echo "A is $A"'`,
		why: "Hydra's proxy on the launching host inherits all of the environment and passes it on anyway; on other hosts it does not. " +
			"Here both are as there: what a login sets, and what was asked for",
		ours: &outcome{stdout: "A is \n"},
	},
	{line: `mpiexec -wdir / -n 1 pwd : -n 1 sh -c 'test "$PWD" != / && echo elsewhere'`},
	{line: `mpiexec -configfile programs`},
	{line: `mpiexec -configfile options sh -c 'echo $A'`},
	{line: `HYDRA_CONFIG_FILE=options mpiexec sh -c 'echo $A'`},
	{line: `HOME=$PWD; cp options .mpiexec.hydra.conf; mpiexec sh -c 'echo $A'`},

	// What becomes of output and input.
	{line: `mpiexec -l -n 2 sh -c 'echo a; echo; echo err >&2'`},
	{line: `mpiexec -prepend-pattern '%r-%g-%p-%h-%% ' -hosts localhost,HOST -n 2 echo a`},
	{line: `mpiexec -outfile-pattern 'out.%r' -errfile-pattern err -n 2 sh -c 'echo a; echo b >&2'; cat out.0 out.1 err`},
	{line: `mpiexec -output-from 1 -n 3 sh -c 'echo $PMI_RANK'`},
	{line: `printf 'a\nb' | mpiexec -n 1 cat`},
	{
		line: `seq 20000 | mpiexec -n 1 wc -l`,
		why:  "Hydra ends a job whose first rank reads slower than input comes; here who writes it waits",
		ours: &outcome{stdout: "20000\n"}, sometimes: true,
	},
	{
		line: `mpiexec -n 2 sh -c 'cat; echo end' </dev/null`,
		why:  "Hydra gives ranks but the first a pipe that nobody closes, at which they wait for ever; here they find the end of input",
		ours: &outcome{stdout: "end\nend\n"},
	},

	// How it ends.
	{line: `mpiexec -n 3 sh -c 'exit $((PMI_RANK+1))'`},
	{line: `mpiexec -n 2 sh -c 'test $PMI_RANK = 0 || exit 3; sleep 0.5; echo survived'`},
	{line: `mpiexec -n 1 sh -c 'exit 300'`},
	{line: `mpiexec -n 2 sh -c 'kill -9 $$'`},
	{line: `ulimit -c 0; mpiexec -n 1 sh -c 'kill -SEGV $$'`},
	{line: `mpiexec -n 2 ./ends kill 9`},
	{line: `mpiexec -n 2 ./ends exit 3`},
	{
		line: `mpiexec -n 2 ./ends exit 0`,
		why:  "a rank that leaves MPI without MPI_Finalize takes the others with it, which Hydra calls a success; here it is a failure",
		ours: &outcome{status: 1},
	},
	{line: `mpiexec -n 3 ./ends after`},
	{
		line: `mpiexec -n 2 ./ends abort 300`,
		why:  "Hydra kills the rank that aborts, now and then before it has read what the rank wrote",
		ours: &outcome{ranks: "Abort(300) on node 1 (rank 1 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 300) - process 1\n", status: 44}, sometimes: true,
	},
	{
		line: `mpiexec -n 2 ./ends abort 7`,
		why:  "as before",
		ours: &outcome{ranks: "Abort(7) on node 1 (rank 1 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 7) - process 1\n", status: 7}, sometimes: true,
	},
	{line: `mpiexec -print-all-exitcodes -hosts localhost,HOST -n 3 sh -c 'exit $PMI_RANK'`},
	{line: `mpiexec -dac -n 1 sh -c 'kill -9 $$'`},
	{
		line: `MPIEXEC_TIMEOUT=1 mpiexec -n 2 sleep 60`,
		why:  "Hydra complains of its own proxy, which ends as it was told to",
		ours: &outcome{stdout: "[mpiexec@HOST] APPLICATION TIMED OUT, TIMEOUT = 1s\n", status: 255}, sometimes: true,
	},
	{
		line: `mpiexec -n 2 sh -c 'trap "echo TERM; exit 4" TERM; touch up; sleep 2 & wait' & until test -e up; do sleep 0.05; done; sleep 0.2; kill $!; wait $!`,
		why:  "Hydra forgets the exit status of a rank that ends soon after a signal was passed on to it",
		ours: &outcome{stdout: "TERM\nTERM\n", status: 4}, sometimes: true,
	},
	{
		line: `mpiexec -n 1 sh -c 'trap "echo INT; exit 5" INT; touch up; sleep 2 & wait' & until test -e up; do sleep 0.05; done; sleep 0.2; kill -INT $!; wait $!`,
		why:  "Hydra forgets the exit status of a rank that ends soon after a signal was passed on to it",
		ours: &outcome{stdout: "INT\n[mpiexec@HOST] Press Ctrl-C again to force abort\n[mpiexec@HOST] Sending Ctrl-C to processes as requested\n", status: 5}, sometimes: true,
	},
	{
		line: `mpiexec -n 1 sh -c 'trap "echo USR1; exit 6" USR1; touch up; sleep 2 & wait' & until test -e up; do sleep 0.05; done; sleep 0.2; kill -USR1 $!; wait $!`,
		why:  "Hydra forgets the exit status of a rank that ends soon after a signal was passed on to it",
		ours: &outcome{stdout: "USR1\n", status: 6}, sometimes: true,
	},

	// What is wrong.
	{line: `mpiexec`},
	{line: `mpiexec -nosuch true`},
	{line: `mpiexec -n`},
	{line: `mpiexec -n 1 -n 2 true`},
	{line: `mpiexec -hosts a -f machines true`},
	{line: `mpiexec -f nonexistent true`},
	{line: `mpiexec -f odd true`},
	{line: `mpiexec -launcher carrier-pigeon true`},
	{line: `mpiexec -n 2 ./nonexistent`},
	{line: `mpiexec -n 1 /etc/passwd`},
	{line: `mpiexec -wdir /nonexistent -n 1 true`},
	{line: `mpiexec -prepend-pattern %q -n 1 echo a`},
	{line: `mpiexec -outfile-pattern /nonexistent/x -n 1 echo a`},
	{line: `mpiexec -skip-launch-node -n 1 true`},
	{
		line: `mpiexec -n many true`,
		why:  "Hydra reads any word as a number, this one as 0, which is as without -n; here it is a mistake",
		ours: &outcome{said: true, status: 255}, sometimes: true,
	},
	{
		line: `mpiexec -n 1 true :`,
		why:  "Hydra starts a program without a name, and dies of it; here it is a mistake",
		ours: &outcome{said: true, status: 255}, sometimes: true,
	},
	{
		line: `mpiexec -ppn 0 -n 1 true`,
		why:  "Hydra divides by it, and dies; here it is a mistake",
		ours: &outcome{said: true, status: 255}, sometimes: true,
	},
}
