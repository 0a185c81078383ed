package pmi

import (
	"bufio"
	"bytes"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
)

var everyMessage = []message{
	{kind: kindHello, version: protocolVersion, name: "kvs_1", size: 300, ranks: []int{0, 1, 299}},
	{kind: kindWelcome, version: protocolVersion},
	{kind: kindRefuse, text: "not you"},
	{kind: kindInit, rank: 299},
	{kind: kindFinalize, rank: 1},
	{kind: kindClosed, rank: MaxSize - 1},
	{kind: kindAbort, rank: 2, code: math.MinInt32, text: "no"},
	{kind: kindFault, rank: 2, text: "bad"},
	{kind: kindGet, rank: 3, key: "-bcast-1-0"},
	{kind: kindPublish, rank: 3, service: "ocean model", value: "tag#0$"},
	{kind: kindUnpublish, rank: 3, service: "ocean model"},
	{kind: kindLookup, rank: 3, service: "ocean model"},
	{kind: kindAnswer, rank: 3, found: true, value: "2F", text: "no"},
	{kind: kindSpawn, rank: 3, pairs: []Pair{{"PARENT", "tag#0$"}}, apps: []SpawnApp{
		{Argv: []string{"./a b", "", "x=y\nz"}, Ranks: 2, Info: []Pair{{"wdir", "/tmp"}, {"soft", ""}}}, {Argv: []string{"b"}}}},
	{kind: kindSpawned, rank: 3, found: true, name: "kvs_2", codes: []int{0, 42}, text: "no"},
	{kind: kindPut, pairs: []Pair{{"a", "1"}, {"b", ""}}},
	{kind: kindBarrierIn, barrier: "WORLD:0", pairs: []Pair{{strings.Repeat("k", MaxKey), strings.Repeat("v", maxStored)}, {"3.1 k", ""}, {"3.1 ", ""}}},
	{kind: kindBarrierOut, barrier: "0,3:1"},
	{kind: kindBye},
}

func TestMessagesSurviveTheWire(t *testing.T) {
	if len(everyMessage) != len(layouts) {
		t.Errorf("%d messages for %d kinds", len(everyMessage), len(layouts))
	}
	var b []byte
	for _, m := range everyMessage {
		b = appendFrame(b, m)
	}
	r := bufio.NewReader(bytes.NewReader(b))
	for _, want := range everyMessage {
		if got, err := readMessage(r); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, want)
		}
	}
	if _, err := readMessage(r); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestPairsAreSplitOverFrames(t *testing.T) {
	var want, got []Pair
	for i := range 1000 {
		want = append(want, Pair{"key-" + strings.Repeat("x", i%40), strings.Repeat("v", MaxValue)})
	}
	r := bufio.NewReader(bytes.NewReader(appendPairs(nil, message{kind: kindBarrierOut, barrier: "WORLD:3"}, want)))
	for frames := 1; ; frames++ {
		m, err := readMessage(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.pairs...)
		if m.kind == kindBarrierOut {
			if m.barrier != "WORLD:3" || frames < 2 {
				t.Errorf("barrier %s after %d frames", m.barrier, frames)
			}
			break
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%d pairs arrived of %d, or in another order", len(got), len(want))
	}
}

func TestBadFrames(t *testing.T) {
	put := func(fields string) string {
		return string([]byte{0, 0, 0, byte(1 + len(fields)), byte(kindPut)}) + fields
	}
	for name, test := range map[string]struct {
		frame string
		want  string
	}{
		"length 0":        {"\x00\x00\x00\x00", "does not speak"},
		"another service": {"SSH-2.0-OpenSSH_9.2", "does not speak"},
		"half a header":   {"\x00\x00", "unexpected EOF"},
		"half a frame":    {"\x00\x00\x00\x09\x04", "unexpected EOF"},
		"kind":            {"\x00\x00\x00\x01\x63", "unknown kind 99"},
		"no field":        {"\x00\x00\x00\x01\x04", "truncated"},
		"rank":            {"\x00\x00\x00\x04\x04\xff\xff\x7f", "above"},
		"trailing":        {"\x00\x00\x00\x03\x04\x00\x00", "1 bytes too many"},
		"many pairs":      {put("\xff\xff\x03"), "truncated"},
		"key":             {put("\x01\x01\t\x00"), `key "\t"`},
		"smuggled line":   {put("\x01\x01k\x02a\n"), "line end"},
	} {
		_, err := readMessage(bufio.NewReader(strings.NewReader(test.frame)))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	for _, m := range everyMessage {
		f.Add(appendFrame(nil, m)[4:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := parseMessage(body)
		if err != nil || (m.kind == kindHello || m.kind == kindWelcome) && m.version != protocolVersion {
			return
		}
		again, err := parseMessage(appendFrame(nil, m)[4:])
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}
