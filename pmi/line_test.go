package pmi

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestParseLine(t *testing.T) {
	for _, test := range []struct {
		line   string
		fields []Pair // nil: an error
	}{
		{"cmd=barrier_in", []Pair{{"cmd", "barrier_in"}}},
		{"cmd=get_maxes ", []Pair{{"cmd", "get_maxes"}}},
		{"cmd=init pmi_version=1 pmi_subversion=1", []Pair{{"cmd", "init"}, {"pmi_version", "1"}, {"pmi_subversion", "1"}}},
		{"cmd=put kvsname=k key=a value=x y=z  w", []Pair{{"cmd", "put"}, {"kvsname", "k"}, {"key", "a"}, {"value", "x y=z  w"}}},
		{"cmd=put key=a value=", []Pair{{"cmd", "put"}, {"key", "a"}, {"value", ""}}},
		{"cmd=publish_name service=ocean  model port=tag#0$port#1$", []Pair{
			{"cmd", "publish_name"}, {"service", "ocean  model"}, {"port", "tag#0$port#1$"}}},
		{"cmd=lookup_name service=ocean model", []Pair{{"cmd", "lookup_name"}, {"service", "ocean model"}}},
		{"mcmd=spawn", []Pair{{"mcmd", "spawn"}}},
		{"", nil},
		{"hello", nil},
		{"cmd=", nil},
		{"=x", nil},
		{"key=a cmd=get", nil},
		{"cmd=get key=a key=b", nil},
		{"cmd=get\x00key=a", nil},
		{"cmd=put stray words", nil}, // a command's name is one word
	} {
		q, err := parseLine([]byte(test.line))
		if test.fields == nil {
			if err == nil {
				t.Errorf("%q parsed as %q", test.line, q.fields)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(q.fields, test.fields) {
			t.Errorf("%q: %q, %v", test.line, q.fields, err)
		}
	}
}

func TestRequestReader(t *testing.T) {
	if q, err := newRequestReader(strings.NewReader("    14cmd=kvs-fence;cmd=x\n")).next(); err != nil || !q.packet || q.cmd != "kvs-fence" {
		t.Errorf("packet: %q, %v", q.fields, err)
	}
	spawn := "mcmd=spawn\nnprocs=2\nexecname=./a b\ntotspawns=1\nspawnssofar=1\narg1=-x = y\nargcnt=1\nendcmd\n"
	rr := newRequestReader(strings.NewReader(spawn + "cmd=finalize\n"))
	q, err := rr.next()
	if n, numErr := q.number("totspawns"); err != nil || numErr != nil || q.cmd != "spawn" || n != 1 {
		t.Errorf("spawn: %q, %v, %v", q.fields, err, numErr)
	}
	if q, err = rr.next(); err != nil || q.cmd != "finalize" {
		t.Errorf("finalize: %q, %v", q.fields, err)
	}
	if _, err = rr.next(); err != io.EOF {
		t.Errorf("end: %v", err)
	}

	for name, test := range map[string]struct {
		input string
		bad   bool // the rank's fault, as opposed to a broken connection
	}{
		"oversize line":    {"cmd=put value=" + strings.Repeat("x", maxLine) + "\n", true},
		"oversize spawn":   {"mcmd=spawn\n" + strings.Repeat("arg="+strings.Repeat("x", 1000)+"\n", maxSpawnBytes/1000), true},
		"nonsense":         {"GET / HTTP/1.1\r\n", true},
		"twice inside":     {"mcmd=spawn\nnprocs=1\nnprocs=1\nendcmd\n", true},
		"half a packet":    {"14    cmd=kvs", false},
		"half a length":    {"14", false},
		"nonsense inside":  {"mcmd=spawn\nnprocs\n", true},
		"half a line":      {"cmd=final", false},
		"half a multiline": {"mcmd=spawn\nnprocs=1\n", false},
	} {
		_, err := newRequestReader(strings.NewReader(test.input)).next()
		var bad *badInput
		if err == nil || err == io.EOF || errors.As(err, &bad) != test.bad {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRequestReader(f *testing.F) {
	f.Add([]byte("cmd=init pmi_version=1 pmi_subversion=1\ncmd=get_maxes\n"))
	f.Add([]byte("cmd=put kvsname=k key=a value=x y=z\ncmd=get kvsname=k key=a\ncmd=barrier_in\ncmd=finalize\n"))
	f.Add([]byte("mcmd=spawn\nnprocs=2\ntotspawns=1\nendcmd\ncmd=abort exitcode=7 message=no more\n"))
	f.Add([]byte("cmd=publish_name service=a b port=c d=e\n"))
	f.Add([]byte("cmd= =\x00\n"))
	f.Add([]byte("cmd=init pmi_version=2 pmi_subversion=0\n38    cmd=fullinit;pmirank=0;threaded=FALSE;    13cmd=finalize;"))
	f.Add([]byte("19    cmd=kvs-put;key=a;;;"))
	f.Add([]byte("43    cmd=fullinit;pmirank=0;threaded=TRUE;\x00=;\nab19    cmd=finalize;;x=\x00\x00;"))
	f.Fuzz(func(t *testing.T, input []byte) {
		rr := newRequestReader(strings.NewReader(string(input)))
		for {
			q, err := rr.next()
			if err != nil {
				if len(err.Error()) > 1000 {
					t.Errorf("an error of %d bytes", len(err.Error()))
				}
				return
			}
			if q.cmd == "" || len(q.fields) == 0 {
				t.Errorf("request %q", q.fields)
			}
			for _, field := range q.fields {
				if strings.ContainsAny(field.Key+field.Value, "\n\x00") && q.fields[0].Key == "cmd" && !q.packet {
					t.Errorf("field %q", field)
				}
			}
		}
	})
}
