package pmi

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// What an agent that was taken over could send.
func TestServerEndsBadStreams(t *testing.T) {
	begin := appendFrame(nil, message{kind: kindHello, version: protocolVersion, name: "kvs_7", size: 4, ranks: []int{0, 1}})
	many := []byte{}
	for i := range 1000 {
		many = appendPairs(many, message{kind: kindPut}, []Pair{{fmt.Sprint(i), strings.Repeat("x", MaxValue)}})
	}
	everybody := message{kind: kindBarrierIn, barrier: "WORLD:0"}
	barriers := []byte{}
	for i := range 1000 {
		barriers = appendFrame(barriers, message{kind: kindBarrierIn, barrier: fmt.Sprintf("WORLD:%d", i)})
	}
	spawn := message{kind: kindSpawn, rank: 1, apps: []SpawnApp{{Argv: []string{"a"}, Ranks: 1}}}
	gets := bytes.Repeat(appendFrame(nil, message{kind: kindGet, rank: 1, key: "k"}), 1000)
	for name, test := range map[string]struct {
		frames []byte
		want   string
	}{
		"a rank of another clone": {appendFrame(nil, message{kind: kindFinalize, rank: 2}), "not its own"},
		"a rank that is no more":  {appendFrame(appendFrame(nil, message{kind: kindClosed, rank: 1}), message{kind: kindInit, rank: 1}), "is closed"},
		"hello again":             {begin, "not its to send"},
		"a server's message":      {appendFrame(nil, message{kind: kindBarrierOut}), "not its to send"},
		"a barrier of others":     {appendFrame(nil, message{kind: kindBarrierIn, barrier: "2,3:0"}), "out of turn"},
		"a barrier of the clone":  {appendFrame(nil, message{kind: kindBarrierIn, barrier: "NODE:0"}), "out of turn"},
		"a barrier of nobody":     {appendFrame(nil, message{kind: kindBarrierIn, barrier: "4:0"}), "no rank of 4"},
		"a barrier twice":         {appendFrame(appendFrame(nil, everybody), everybody), "out of turn"},
		"a flood of barriers":     {barriers, "out of turn"},
		"a spawn of nothing":      {appendFrame(nil, message{kind: kindSpawn, rank: 1}), "spawn of 0 programs"},
		"a spawn in a spawn":      {appendFrame(appendFrame(nil, spawn), spawn), "before the last was answered"},
		"a flood of puts":         {many, "KB in the key-value space"},
		"a flood of gets":         {gets, "without reading"},
		"nonsense":                {[]byte("GET / HTTP/1.1"), "does not speak"},
		"half a frame":            {[]byte{0, 0}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			launcher, agent := net.Pipe()
			served := make(chan error, 1)
			go func() {
				served <- NewServer(Group{Size: 4, KVSName: "kvs_7"}, NewNames(), Events{Spawn: func(*SpawnRequest) {}}).Serve(t.Context(), launcher, []int{0, 1})
			}()
			_, _ = agent.Write(begin)
			_, _ = readMessage(bufio.NewReader(agent)) // welcome, and from here on nothing is read
			_, _ = agent.Write(test.frames)
			if name == "half a frame" {
				agent.Close()
			}
			if err := within(t, served); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Serve: %v, want %q", err, test.want)
			}
		})
	}
}

func TestProxyEndsBadStreams(t *testing.T) {
	welcome := message{kind: kindWelcome, version: protocolVersion}
	for name, test := range map[string]struct {
		messages []message
		want     string
	}{
		"no welcome":          {[]message{{kind: kindBarrierOut}}, "instead of welcome"},
		"another version":     {[]message{{kind: kindWelcome, version: 9}}, "speaks version 9"},
		"a proxy's message":   {[]message{welcome, {kind: kindInit}}, "not its to send"},
		"barrier out of turn": {[]message{welcome, {kind: kindBarrierOut}}, "out of turn"},
		"a foreign rank":      {[]message{welcome, {kind: kindAnswer, rank: 3}}, "not on this clone"},
		"two answers":         {[]message{welcome, {kind: kindAnswer, rank: 1}, {kind: kindAnswer, rank: 1}}, "twice"},
		"the end":             {[]message{welcome}, "closed the stream"},
	} {
		t.Run(name, func(t *testing.T) {
			launcher, agent := net.Pipe()
			ran := make(chan error, 1)
			go func() { ran <- NewProxy(Group{Size: 4, KVSName: "kvs_7"}, agent, []int{0, 1}).Run(t.Context()) }()
			if m, err := readMessage(bufio.NewReader(launcher)); err != nil || m.kind != kindHello {
				t.Errorf("%s, %v", m.kind, err)
			}
			for _, m := range test.messages {
				_, _ = launcher.Write(appendFrame(nil, m))
			}
			launcher.Close()
			if err := within(t, ran); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Run: %v, want %q", err, test.want)
			}
		})
	}
}

func FuzzServe(f *testing.F) {
	begin := appendFrame(nil, message{kind: kindHello, version: protocolVersion, name: "kvs_7", size: 4, ranks: []int{0, 1}})
	all := slices.Clone(begin)
	for _, m := range everyMessage {
		f.Add(appendFrame(slices.Clone(begin), m))
		m.rank %= 2
		all = appendFrame(all, m)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, input []byte) {
		launcher, agent := net.Pipe()
		served := make(chan error, 1)
		server := NewServer(Group{Size: 4, KVSName: "kvs_7"}, NewNames(), Events{})
		go func() { served <- server.Serve(t.Context(), launcher, []int{0, 1}) }()
		go func() { _, _ = io.Copy(io.Discard, agent) }()
		_, _ = agent.Write(input)
		agent.Close()
		_ = within(t, served)
		for r := range 2 {
			if _, err := server.WaitClosed(t.Context(), r); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzRun(f *testing.F) {
	all := appendFrame(nil, message{kind: kindWelcome, version: protocolVersion})
	for _, m := range everyMessage {
		f.Add(appendFrame(slices.Clone(all), m))
	}
	for _, m := range everyMessage {
		m.rank %= 2
		all = appendFrame(all, m)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, input []byte) {
		launcher, agent := net.Pipe()
		ran, ended := make(chan error, 1), make(chan error, 1)
		proxy := NewProxy(Group{Size: 4, KVSName: "kvs_7"}, agent, []int{0})
		go func() { ran <- proxy.Run(t.Context()) }()
		go func() { _, _ = io.Copy(io.Discard, launcher) }()
		ours, theirs := net.Pipe()
		go func() { ended <- proxy.ServeRank(t.Context(), 0, theirs) }()
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		_, _ = io.WriteString(ours, hello+"\ncmd=get key=k\n")
		_, _ = launcher.Write(input)
		launcher.Close()
		_ = within(t, ran)
		_ = within(t, ended)
	})
}
