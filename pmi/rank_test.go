package pmi

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// What goes over one rank's PMI_FD. Lines of a script: "> " to the proxy, "< " from it, "<EOF" the proxy hangs up,
// "EOF>" the rank does.
func TestConversations(t *testing.T) {
	maxes := "< cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=850"
	init := "> " + hello + "\n< " + helloBack + "\n"
	for _, test := range []struct {
		name   string
		script string
		want   string // in ServeRank's error; "" is none
		report string // in the report to the launcher; "" is none
	}{
		{name: "MPICH 4.0, one process", script: init + `
			> cmd=get_maxes
			` + maxes + `
			> cmd=get_appnum
			< cmd=appnum appnum=0
			> cmd=get_my_kvsname
			< cmd=my_kvsname kvsname=kvs_7
			> cmd=get kvsname=kvs_7 key=PMI_process_mapping
			< cmd=get_result rc=0 msg=success value=(vector,(0,1,1))
			> cmd=barrier_in
			< cmd=barrier_out
			> cmd=put kvsname=kvs_7 key=-allgather-shm-1-0 value=20A88290
			< cmd=put_result rc=0 msg=success
			> cmd=barrier_in
			< cmd=barrier_out
			> cmd=get kvsname=kvs_7 key=-allgather-shm-1-0
			< cmd=get_result rc=0 msg=success value=20A88290
			> cmd=get kvsname=kvs_7 key=PMI_dead_processes
			< cmd=get_result rc=0 msg=success value=
			> cmd=get kvsname=kvs_7 key=PMI_hwloc_xmlfile
			< cmd=get_result rc=0 msg=success value=unavailable
			> cmd=get kvsname=kvs_7 key=PMI_mpi_memory_alloc_kinds
			< cmd=get_result rc=-1 msg=key_PMI_mpi_memory_alloc_kinds_not_found value=unknown
			> cmd=get_universe_size
			< cmd=universe_size size=-1
			> cmd=finalize
			< cmd=finalize_ack
			EOF>`},
		{name: "no MPI at all", script: "EOF>"},
		{name: "a value with spaces, put twice", script: init + `
			> cmd=put kvsname=kvs_7 key=k value=one
			< cmd=put_result rc=0 msg=success
			> cmd=put key=k value=two a=b
			< cmd=put_result rc=0 msg=success
			> cmd=get key=k
			< cmd=get_result rc=0 msg=success value=two a=b
			> cmd=get kvsname=kvs_8 key=k
			< cmd=get_result rc=-1 msg=kvsname_not_found value=unknown
			> cmd=finalize
			< cmd=finalize_ack
			EOF>`},
		{name: "a second program after the first", script: init + `
			> cmd=finalize
			< cmd=finalize_ack
			` + init + `
			> cmd=finalize
			< cmd=finalize_ack
			EOF>`},
		{name: "spawn of nothing", report: "without a name", script: init + `
			> mcmd=spawn
			> nprocs=1
			> totspawns=1
			> endcmd
			< cmd=spawn_result rc=-1 msg=spawn_without_a_name_for_program_0
			> cmd=finalize
			< cmd=finalize_ack
			EOF>`},
		{name: "spawn that is cut off", want: "without arg2", report: "without arg2", script: init + `
			> mcmd=spawn
			> nprocs=1
			> execname=a
			> totspawns=1
			> argcnt=2
			> arg1=x
			> endcmd
			<EOF`},
		{name: "names", script: init + `
			> cmd=publish_name service=ocean model port=tag#0$
			< cmd=publish_result info=ok rc=0 msg=success
			> cmd=publish_name service=ocean model port=tag#1$
			< cmd=publish_result info=ok rc=1 msg=key_already_present
			> cmd=lookup_name service=ocean model
			< cmd=lookup_result port=tag#0$ info=ok rc=0 msg=success
			> cmd=unpublish_name service=ocean model
			< cmd=unpublish_result info=ok rc=0 msg=success
			> cmd=unpublish_name service=ocean model
			< cmd=unpublish_result info=ok rc=1 msg=service_not_found
			> cmd=lookup_name service=ocean model
			< cmd=lookup_result rc=1 msg=service_not_found
			> cmd=publish_name service=two port=two words
			< cmd=publish_result info=ok rc=1 msg=bad_port
			> cmd=finalize
			< cmd=finalize_ack
			EOF>`},
		{name: "spaces of the rank's own", script: init + `
			> cmd=create_kvs
			< cmd=newkvs kvsname=kvs_7_0.0
			> cmd=put kvsname=kvs_7_0.0 key=b value=2
			< cmd=put_result rc=0 msg=success
			> cmd=put kvsname=kvs_7_0.0 key=a value=1 2
			< cmd=put_result rc=0 msg=success
			> cmd=get kvsname=kvs_7 key=a
			< cmd=get_result rc=-1 msg=key_a_not_found value=unknown
			> cmd=get kvsname=kvs_7_0.0 key=a
			< cmd=get_result rc=0 msg=success value=1 2
			> cmd=getbyidx kvsname=kvs_7_0.0 idx=0
			< cmd=getbyidx_results rc=0 nextidx=1 key=a val=1 2
			> cmd=getbyidx kvsname=kvs_7_0.0 idx=1
			< cmd=getbyidx_results rc=0 nextidx=2 key=b val=2
			> cmd=getbyidx kvsname=kvs_7_0.0 idx=2
			< cmd=getbyidx_results rc=-1 reason=no_more_keyvals
			> cmd=getbyidx kvsname=kvs_7 idx=0
			< cmd=getbyidx_results rc=0 nextidx=1 key=PMI_process_mapping val=(vector,(0,1,1))
			> cmd=destroy_kvs kvsname=kvs_7_0.0
			< cmd=kvs_destroyed rc=0 msg=KVS_kvs_7_0.0_successfully_destroyed
			> cmd=get kvsname=kvs_7_0.0 key=a
			< cmd=get_result rc=-1 msg=kvsname_not_found value=unknown
			> cmd=getbyidx kvsname=kvs_7_0.0 idx=0
			< cmd=getbyidx_results rc=-1 reason=kvs_kvs_7_0.0_not_found
			> cmd=destroy_kvs kvsname=kvs_7
			< cmd=kvs_destroyed rc=-1 msg=KVS_kvs_7_not_found
			> cmd=create_kvs
			< cmd=newkvs kvsname=kvs_7_0.1
			> cmd=finalize
			< cmd=finalize_ack
			EOF>`},
		{name: "barriers of groups", script: init + `
			> cmd=barrier_in group=NODE:5
			< cmd=barrier_out group=NODE:5
			> cmd=barrier_in group=WORLD:0
			< cmd=barrier_out group=WORLD:0
			> cmd=barrier_in group=0:77
			< cmd=barrier_out group=0:77
			> cmd=finalize
			< cmd=finalize_ack
			EOF>`},
		{name: "barrier of a rank that is not", want: "no rank of 1", report: "no rank of 1", script: init + `
			> cmd=barrier_in group=0,1:0
			<EOF`},
		{name: "commands of other times", report: "frobnicate is not supported", script: init + `
			> cmd=frobnicate hard=yes
			< cmd=frobnicate_result rc=-1 msg=not_supported
			> cmd=finalize
			< cmd=finalize_ack
			EOF>`},
		{name: "port mode", script: `
			> cmd=initack pmiid=4711
			< cmd=initack
			< cmd=set size=1
			< cmd=set rank=0
			< cmd=set debug=0
			` + init + `
			> cmd=finalize
			< cmd=finalize_ack
			EOF>`},
		{name: "PMI 3", want: "version 3", report: "version 3", script: `
			> cmd=init pmi_version=3 pmi_subversion=0
			< cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=-1
			<EOF`},
		{name: "get before init", want: "rank 0", report: "get_maxes while PMI is not started", script: `
			> cmd=get_maxes
			<EOF`},
		{name: "init twice", want: "two processes", report: "two processes", script: init + `
			> cmd=init pmi_version=1 pmi_subversion=1
			<EOF`},
		{name: "nonsense", want: "does not begin with cmd=", report: "does not begin", script: init + `
			> a=b
			<EOF`},
		{name: "oversize line", want: "more than 8192 bytes", report: "more than 8192 bytes", script: init + `
			> cmd=put kvsname=kvs_7 key=k value=` + strings.Repeat("v", maxLine) + `
			<EOF`},
		{name: "oversize key", want: "a key of 65 bytes", report: "a key of 65 bytes", script: init + `
			> cmd=put kvsname=kvs_7 key=` + strings.Repeat("k", 65) + ` value=v
			< cmd=put_result rc=-1 msg=put_of_a_key_of_65_bytes:_at_most_64_are_taken
			<EOF`},
		{name: "oversize value", want: "a value of 851 bytes", report: "a value of 851 bytes", script: init + `
			> cmd=put kvsname=kvs_7 key=k value=` + strings.Repeat("v", MaxValue+1) + `
			< cmd=put_result rc=-1 msg=put_of_k_with_a_value_of_851_bytes:_at_most_850_are_taken
			<EOF`},
		{name: "foreign space", want: "another group", report: "another group", script: init + `
			> cmd=put kvsname=kvs_8 key=k value=v
			< cmd=put_result rc=-1 msg=put_of_k_into_another_group's_key-value_space
			<EOF`},
		{name: "death after init", want: "between init and finalize", script: init + "EOF>"},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := newJob(t, 1, 1)
			c := j.ranks[0]
			for line := range strings.Lines(test.script) {
				switch line = strings.TrimSpace(line); {
				case line == "":
				case line == "EOF>":
					c.conn.Close()
				case line == "<EOF":
					if got := c.hear(); got != "EOF" {
						t.Errorf("heard %q, want the end", got)
					}
				case strings.HasPrefix(line, "> "):
					if len(line) > maxLine { // the proxy may hang up before it is all out
						_, _ = c.conn.Write([]byte(line[2:] + "\n"))
						continue
					}
					c.send(line[2:])
				case strings.HasPrefix(line, "< "):
					if got := c.hear(); got != line[2:] {
						t.Errorf("heard %q, want %q", got, line[2:])
					}
				default:
					t.Fatalf("script line %q", line)
				}
			}
			err := within(t, j.ended[0])
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("ServeRank: %v, want %q", err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), "rank 0") {
				t.Errorf("ServeRank: %v, which does not name the rank", err)
			}
			if err := within(t, j.serves[0]); err != nil { // the job's end is no error of the server
				t.Error(err)
			}
			reports := strings.Join(j.seen("protocol"), "\n")
			if test.report == "" && reports != "" || !strings.Contains(reports, test.report) {
				t.Errorf("reported %q, want %q", reports, test.report)
			}
		})
	}
}

func TestErrNotFinalized(t *testing.T) {
	j := newJob(t, 1, 1)
	j.ranks[0].init()
	j.ranks[0].conn.Close()
	if err := within(t, j.ended[0]); !errors.Is(err, ErrNotFinalized) {
		t.Errorf("ServeRank: %v", err)
	}
	if s := j.proxies[0].RankState(0); s != Initialized {
		t.Errorf("state %s", s)
	}
}

func TestQuota(t *testing.T) {
	j := newJob(t, 1, 2)
	j.each((*client).init)
	c := j.ranks[0]
	value := strings.Repeat("v", MaxValue)
	for range 1000 { // the same key again and again is no more than once
		c.put("k", value)
	}
	refused := false
	for i := 0; i < 1000 && !refused; i++ {
		answer := c.ask("cmd=put kvsname=kvs_7 key=k" + strings.Repeat("x", i%60) + string(rune('a'+i/60)) + " value=" + value)
		refused = answer != putDone
	}
	if !refused || c.hear() != "EOF" {
		t.Error("a rank put a megabyte")
	}
	if err := within(t, j.ended[0]); err == nil || !strings.Contains(err.Error(), "rank 0") || !strings.Contains(err.Error(), "256 KB") {
		t.Errorf("ServeRank: %v", err)
	}
	j.ranks[1].put("k2", value) // its neighbour is served on
	j.ranks[1].finalize()
}

// A rank that repeats an unsupported command is answered, but not reported for ever.
func TestFaultsAreLimited(t *testing.T) {
	j := newJob(t, 1, 1)
	c := j.ranks[0]
	c.init()
	for range 10 * maxFaults {
		c.expect("cmd=x", "cmd=x_result rc=-1 msg=not_supported")
	}
	c.finalize()
	j.finish()
	if n := len(j.seen("protocol")); n != maxFaults {
		t.Errorf("%d reports", n)
	}
}

func FuzzServeRank(f *testing.F) {
	f.Add([]byte(hello + "\ncmd=put key=a value=b\ncmd=barrier_in\ncmd=get key=a\ncmd=get key=b\ncmd=finalize\n"))
	f.Add([]byte(hello + "\nmcmd=spawn\ntotspawns=1\nendcmd\ncmd=abort exitcode=x\n"))
	f.Add([]byte("cmd=abort exitcode=7 message=\x1b[2J\n" + hello + "\n" + hello + "\n"))
	f.Add([]byte("cmd=init pmi_version=2 pmi_subversion=0\n38    cmd=fullinit;pmirank=0;threaded=FALSE;14    cmd=kvs-fence;" +
		"38    cmd=info-getnodeattr;key=k;wait=TRUE;13    cmd=finalize;"))
	f.Add([]byte("cmd=initack pmiid=1\n" + hello + "\ncmd=create_kvs\ncmd=put kvsname=kvs_7_0.0 key=a value=b\ncmd=destroy_kvs kvsname=kvs_7_0.0\n" +
		"cmd=getbyidx idx=0\ncmd=barrier_in group=NODE:1\ncmd=publish_name service=a port=b\ncmd=lookup_name service=a\n"))
	f.Fuzz(func(t *testing.T, input []byte) {
		j := newJob(t, 1, 1)
		go func() { // a launcher that has no room
			for r := range j.spawns {
				r.Answer("", nil, errors.New("no room"))
			}
		}()
		defer close(j.spawns)
		go func() { _, _ = io.Copy(io.Discard, j.ranks[0].conn) }() // the rank reads whatever comes
		_, _ = j.ranks[0].conn.Write(input)
		j.ranks[0].conn.Close()
		_ = within(t, j.ended[0])
		if err := within(t, j.runs[0]); err != nil { // whatever a rank sends, the stream to the launcher stays sane
			t.Error(err)
		}
		if err := within(t, j.serves[0]); err != nil {
			t.Error(err)
		}
	})
}
