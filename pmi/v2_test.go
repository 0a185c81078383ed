package pmi

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestParsePacket(t *testing.T) {
	for _, test := range []struct {
		body   string
		fields []Pair // nil: an error
	}{
		{"cmd=kvs-fence;", []Pair{{"cmd", "kvs-fence"}}},
		{"cmd=kvs-put;key=a;value=x;;y=z;;;", []Pair{{"cmd", "kvs-put"}, {"key", "a"}, {"value", "x;y=z;"}}},
		{"cmd=kvs-put;thrid=0x7f;key=a;value=;", []Pair{{"cmd", "kvs-put"}, {"thrid", "0x7f"}, {"key", "a"}, {"value", ""}}},
		{"cmd=spawn;subcmd=a;subcmd=b;", []Pair{{"cmd", "spawn"}, {"subcmd", "a"}, {"subcmd", "b"}}},
		{"", nil},
		{"cmd=kvs-fence", nil},
		{"cmd=kvs-put;key=a;value=x;;", nil},
		{"key=a;cmd=kvs-get;", nil},
		{"cmd=;", nil},
		{"cmd=a b;", nil},
		{"cmd=x;novalue;", nil},
		{"cmd=x;key=\x00;", nil},
	} {
		q, err := parsePacket(test.body)
		if (err == nil) != (test.fields != nil) || err == nil && !reflect.DeepEqual(q.fields, test.fields) {
			t.Errorf("%q: %q, %v", test.body, q.fields, err)
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add("cmd=kvs-put;key=a;value=x;;y=z;;;")
	f.Add("cmd=fullinit;pmirank=0;threaded=FALSE;")
	f.Add("cmd=spawn;ncmds=1;preputcount=1;ppkey0=a;ppval0=b;subcmd=c;maxprocs=2;argc=1;argv0=d;infokeycount=0;")
	f.Fuzz(func(t *testing.T, body string) {
		q, err := parsePacket(body)
		if err != nil {
			return
		}
		var fields []Pair
		for _, f := range q.fields[1:] {
			if f.Key != "thrid" {
				fields = append(fields, f)
			}
		}
		again, err := parsePacket(string(appendPacket(nil, request{}, q.cmd, fields)[lengthSize:]))
		if err != nil || len(again.fields) != 1+len(fields) {
			t.Errorf("%q became %q, %v", q.fields, again.fields, err)
		}
		_, _, _ = q.spawnPacket()
	})
}

// MPICH's client up to 4.0 sends six bytes more than a message has, of whatever was there before.
func TestPaddedPackets(t *testing.T) {
	j := newJob(t, 1, 1)
	c := j.ranks[0]
	padded := func(body, rest, want string) {
		t.Helper()
		if c.packet(body + rest); len(rest) != lengthSize {
			t.Fatalf("%q is no padding", rest)
		}
		if got := c.hearPacket(); !strings.HasPrefix(got, want) {
			t.Errorf("%q answered %q, want %q", body, got, want)
		}
	}
	for range 2 { // and again, for a further program on the same connection
		c.expect("cmd=init pmi_version=2 pmi_subversion=0", "cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0")
		padded("cmd=fullinit;pmirank=0;threaded=TRUE;", "\x00\xff\n=;x", "cmd=fullinit-response;")
		padded("cmd=kvs-put;key=a;value=1;", ";b=cd;", "cmd=kvs-put-response;rc=0;")
		padded("cmd=kvs-put;key=b;value=2;", "key=x;", "cmd=kvs-put-response;rc=0;")
		padded("cmd=kvs-get;jobid=kvs_7;key=a;", "\x00;;;;;", "cmd=kvs-get-response;found=TRUE;value=1;rc=0;")
		padded("cmd=kvs-fence;", "thrid=", "cmd=kvs-fence-response;rc=0;")
		padded("cmd=finalize;", "123456", "cmd=finalize-response;rc=0;")
		// One that sends what it says may come next.
		c.init2("")
		c.expectPacket("cmd=kvs-get;key=b;", "cmd=kvs-get-response;found=TRUE;value=2;rc=0;")
		c.expectPacket("cmd=finalize;", "cmd=finalize-response;rc=0;")
	}
	c.conn.Close()
	j.finish()
}

// A group of clients of both versions: one KVS, one barrier.
func TestVersionsTogether(t *testing.T) {
	j := startJob(t, NewNames(), 2, Group{Size: 4, KVSName: "kvs_7", UniverseSize: 12, Apps: []int{2, 2}, Spawner: "kvs_6", Mapping: "(vector,(0,2,2))"})
	long := strings.Repeat("v", maxStored)
	j.each(func(c *client) {
		if c.rank%2 == 0 {
			c.init()
			c.put("from-1-"+fmt.Sprint(c.rank), "a;b")
			c.barrier()
			c.expect("cmd=get key=from-2-1", "cmd=get_result rc=-1 msg=value_too_long value=unknown")
			c.expect("cmd=get key=short-3", foundPrefix+"x y")
			c.finalize()
			return
		}
		c.init2("kvs_6")
		c.expectPacket("cmd=job-getid;", "cmd=job-getid-response;jobid=kvs_7;rc=0;")
		c.expectPacket(fmt.Sprintf("cmd=kvs-put;thrid=0x1;key=from-2-%d;value=%s;", c.rank, long), "cmd=kvs-put-response;thrid=0x1;rc=0;")
		c.expectPacket(fmt.Sprintf("cmd=kvs-put;key=short-%d;value=x y;", c.rank), "cmd=kvs-put-response;rc=0;")
		c.expectPacket("cmd=kvs-fence;thrid=0x2;", "cmd=kvs-fence-response;thrid=0x2;rc=0;")
		c.expectPacket("cmd=kvs-get;jobid=kvs_7;srcid=-1;key=from-1-2;", "cmd=kvs-get-response;found=TRUE;value=a;;b;rc=0;")
		c.expectPacket("cmd=kvs-get;jobid=kvs_7;srcid=1;key=from-2-1;", "cmd=kvs-get-response;found=TRUE;value="+long+";rc=0;")
		c.expectPacket("cmd=kvs-get;jobid=;srcid=1;key=never;", "cmd=kvs-get-response;found=FALSE;rc=0;")
		c.expectPacket("cmd=kvs-get;jobid=kvs_6;srcid=1;key=from-2-1;", "cmd=kvs-get-response;found=FALSE;rc=0;")
		c.expectPacket("cmd=info-getjobattr;key=universeSize;", "cmd=info-getjobattr-response;found=TRUE;value=12;rc=0;")
		c.expectPacket("cmd=info-getjobattr;key=hasNameServ;", "cmd=info-getjobattr-response;found=TRUE;value=t;rc=0;")
		c.expectPacket("cmd=info-getjobattr;key=PMI_process_mapping;", "cmd=info-getjobattr-response;found=TRUE;value=(vector,(0,2,2));rc=0;")
		c.expectPacket("cmd=info-getjobattr;key=PMI_hwloc_xmlfile;", "cmd=info-getjobattr-response;found=FALSE;rc=0;")
		c.expectPacket("cmd=finalize;", "cmd=finalize-response;rc=0;")
		c.conn.Close()
	})
	j.finish()
}

func TestNodeAttributes(t *testing.T) {
	j := newJob(t, 2, 2)
	j.each(func(c *client) { c.init2("") })
	a, b, elsewhere := j.ranks[0], j.ranks[1], j.ranks[2]
	a.packet("cmd=info-getnodeattr;thrid=0x1;key=k;wait=TRUE;")
	a.expectPacket("cmd=info-getnodeattr;thrid=0x2;key=k;wait=FALSE;", "cmd=info-getnodeattr-response;thrid=0x2;found=FALSE;rc=0;")
	b.expectPacket("cmd=info-putnodeattr;key=other;value=1;", "cmd=info-putnodeattr-response;rc=0;")
	b.expectPacket("cmd=info-putnodeattr;key=k;value=v;;w;", "cmd=info-putnodeattr-response;rc=0;")
	if got := a.hearPacket(); got != "cmd=info-getnodeattr-response;thrid=0x1;found=TRUE;value=v;;w;rc=0;" {
		t.Errorf("heard %q", got)
	}
	elsewhere.expectPacket("cmd=info-getnodeattr;key=k;", "cmd=info-getnodeattr-response;found=FALSE;rc=0;")
	b.packet("cmd=info-getnodeattr;key=never;wait=TRUE;") // it hangs up without an answer
	b.conn.Close()
	if err := within(t, j.ended[1]); err == nil {
		t.Error("rank 1 ended well")
	}
	a.expectPacket("cmd=kvs-get;key=k;", "cmd=kvs-get-response;found=FALSE;rc=0;") // it is no key
}

func TestPacketNamesAndSpawn(t *testing.T) {
	names := NewNames()
	j := startJob(t, names, 1, Group{Size: 1, KVSName: "kvs_7"})
	c := j.ranks[0]
	c.init2("")
	c.expectPacket("cmd=name-publish;name=ocean model;port=tag#0$;infokeycount=0;", "cmd=name-publish-response;rc=0;")
	c.expectPacket("cmd=name-publish;name=ocean model;port=tag#1$;infokeycount=0;", "cmd=name-publish-response;rc=1;errmsg=key_already_present;")
	c.expectPacket("cmd=name-lookup;name=ocean model;", "cmd=name-lookup-response;port=tag#0$;value=tag#0$;found=TRUE;rc=0;")
	c.expectPacket("cmd=name-unpublish;name=ocean model;", "cmd=name-unpublish-response;rc=0;")
	c.expectPacket("cmd=name-lookup;name=ocean model;", "cmd=name-lookup-response;rc=1;errmsg=service_not_found;")

	spawn := "cmd=spawn;thrid=0x5;ncmds=2;preputcount=1;ppkey0=PARENT;ppval0=tag#0$;subcmd=./a;maxprocs=2;argc=2;argv0=x;;y;argv1=;" +
		"infokeycount=1;infokey0=wdir;infoval0=/tmp;subcmd=b;maxprocs=1;argc=0;infokeycount=0;"
	c.packet(spawn)
	r := j.spawned()
	want := []SpawnApp{{Argv: []string{"./a", "x;y", ""}, Ranks: 2, Info: []Pair{{"wdir", "/tmp"}}}, {Argv: []string{"b"}, Ranks: 1}}
	if !reflect.DeepEqual(r.Apps, want) || !reflect.DeepEqual(r.Preput, []Pair{{"PARENT", "tag#0$"}}) {
		t.Errorf("asked for %+v, %v", r.Apps, r.Preput)
	}
	r.Answer("kvs_8", []int{0, 0, 42}, nil)
	if got := c.hearPacket(); got != "cmd=spawn-response;thrid=0x5;jobid=kvs_8;nerrs=3;errcodes=0,0,42;rc=0;" {
		t.Errorf("heard %q", got)
	}
	c.packet(spawn)
	j.spawned().Answer("", nil, fmt.Errorf("no room; none"))
	if got := c.hearPacket(); got != "cmd=spawn-response;thrid=0x5;rc=1;errmsg=no_room;;_none;" {
		t.Errorf("heard %q", got)
	}
	c.expectPacket("cmd=finalize;", "cmd=finalize-response;rc=0;")
	c.conn.Close()
	j.finish()
}

func TestBadPackets(t *testing.T) {
	for name, test := range map[string]struct {
		raw  string // after init and fullinit
		body string // of a packet, if not raw
		want string // in ServeRank's error
	}{
		"length":          {raw: "999999cmd=kvs-fence;", want: "length"},
		"length 0":        {raw: "0     ", want: "length"},
		"no number":       {raw: " x    ", want: "length"},
		"nonsense":        {body: "hello", want: "not key=value"},
		"cut off":         {body: "cmd=ab", want: "no semicolon"},
		"a long key":      {body: "cmd=kvs-put;key=" + strings.Repeat("k", 65) + ";value=v;", want: "a key of 65 bytes"},
		"a long value":    {body: "cmd=kvs-put;key=k;value=" + strings.Repeat("v", maxStored+1) + ";", want: "a value of 1025 bytes"},
		"a key of spaces": {body: "cmd=kvs-put;key=1.0 a;value=v;", want: "printable"},
		"a line end":      {body: "cmd=kvs-put;key=a;value=\nv;", want: "line end"},
		"attribute":       {body: "cmd=info-putnodeattr;key=a;value=\nv;", want: "line end"},
		"init again":      {body: "cmd=fullinit;", want: "fullinit twice"},
		"spawn of others": {body: "cmd=spawn;ncmds=1;", want: "says otherwise"},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, 1, 1)
			c := j.ranks[0]
			c.init2("")
			go func() { _, _ = io.Copy(io.Discard, c.r) }() // the answers
			if test.raw != "" {
				_, _ = io.WriteString(c.conn, test.raw)
			} else {
				c.packet(test.body)
			}
			if err := within(t, j.ended[0]); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("ServeRank: %v, want %q", err, test.want)
			}
		})
	}
	j := newJob(t, 1, 1)
	j.ranks[0].packet("cmd=kvs-fence;")
	if err := within(t, j.ended[0]); err == nil || !strings.Contains(err.Error(), "kvs-fence while PMI is not started") {
		t.Errorf("ServeRank: %v", err)
	}
	j = newJob(t, 1, 1)
	j.ranks[0].packet("cmd=fullinit;pmirank=1;")
	if err := within(t, j.ended[0]); err == nil || !strings.Contains(err.Error(), "as another rank") {
		t.Errorf("ServeRank: %v", err)
	}
}

// What PMI-2 cannot do here is answered, and reported.
func TestUnsupportedPacket(t *testing.T) {
	j := newJob(t, 1, 1)
	c := j.ranks[0]
	c.init2("")
	c.expectPacket("cmd=job-connect;thrid=0x9;jobid=x;", "cmd=job-connect-response;thrid=0x9;rc=1;errmsg=not_supported;")
	c.expectPacket("cmd=finalize;", "cmd=finalize-response;rc=0;")
	c.conn.Close()
	j.finish()
	if got := j.seen("protocol"); len(got) != 1 || got[0] != "protocol 0 job-connect is not supported" {
		t.Errorf("reported %q", got)
	}
}
