package pmix

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// FuzzFrame feeds what a guest may send to a node in the midst of a job.
func FuzzFrame(f *testing.F) {
	f.Add(newFrame(kindFence).number(1).number(1).proc(Proc{"a", Wildcard}).bytes([]byte("x")).frame())
	f.Add(newFrame(kindPublish).number(1).number(0).number(4).number(1).number(1).string("k").bytes([]byte("v")).frame())
	f.Add(newFrame(kindLookup).number(1).number(0).number(4).number(1).number(0).number(1).string("k").frame())
	f.Add(newFrame(kindSpawn).number(1).number(0).number(0).number(1).string("p").number(0).number(0).string("/").number(2).number(0).frame())
	f.Add(newFrame(kindMessage).number(1).number(0).number(1).string(logMessage).bytes([]byte("\x00\x00\x00\x01\x00\x00\x00\x02f\x00")).frame())
	f.Add(newFrame(kindDmodex).number(1).proc(Proc{"a", 1}).frame())
	f.Add(newFrame(kindModex).number(1).number(0).bytes(nil).frame())
	f.Fuzz(func(t *testing.T, data []byte) {
		s := NewServer(Events{Message: func(_ Proc, text string) {
			if len(text) > maxText+1 || strings.ContainsAny(text, "\x00\x1b\r") {
				t.Errorf("shown: %q", text)
			}
		}})
		nodes := nodesOf(t, s, Job{Namespace: "a", Places: []Place{{"h1", []int{0}}, {"h2", []int{1}}}, Apps: []App{{Ranks: 2}}})
		in := bytes.NewReader(data)
		for {
			d, err := readFrame(in)
			if err != nil || s.handle(nodes[0], d) != nil {
				break
			}
		}
		s.leave(nodes[0])
		if nodes[0].waiting > maxWaiting || nodes[0].held > maxHeld+maxFrame {
			t.Errorf("%d operations and %d bytes are kept", nodes[0].waiting, nodes[0].held)
		}
	})
}

func FuzzHelpText(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x00\x00\x00\x02f\x00\x00\x00\x00\x01\x00\x00\x00\x02t\x00\x00\x00\x00\x01\x01\x00\x00\x00\x01\x00\x00\x00\x03hi\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if topic, text := helpText(data); len(topic)+len(text) > len(data) {
			t.Errorf("%q and %q of %d bytes", topic, text, len(data))
		}
	})
}

func TestHelpText(t *testing.T) {
	topic, text := helpText([]byte("\x00\x00\x00\x01\x00\x00\x00\x02f\x00\x00\x00\x00\x01\x00\x00\x00\x02t\x00\x00\x00\x00\x01\x01\x00\x00\x00\x01\x00\x00\x00\x03hi\x00"))
	if topic != "f t" || text != "hi" {
		t.Errorf("read %q, %q", topic, text)
	}
	if topic, text = helpText([]byte("\x00\x00\x00\x02")); topic != "" || text != "" {
		t.Errorf("read %q, %q of nonsense", topic, text)
	}
}

func TestReadFrameBounds(t *testing.T) {
	for _, head := range []string{"\x00\x00\x00\x00", "\xff\xff\xff\xff\x01"} {
		if _, err := readFrame(strings.NewReader(head)); err == nil || err == io.EOF {
			t.Errorf("%q: %v", head, err)
		}
	}
	if _, err := readFrame(strings.NewReader("\x00\x00\x00\x05\x01ab")); err != io.ErrUnexpectedEOF {
		t.Errorf("a frame cut off: %v", err)
	}
}

// nodesOf adds a job and attaches nodes to it that nobody is behind of: what the Server has for them stays in out.
func nodesOf(t *testing.T, s *Server, j Job) []*Node {
	t.Helper()
	if err := s.Add(j); err != nil {
		t.Fatal(err)
	}
	var nodes []*Node
	for i := range j.Places {
		n := &Node{
			server: s, conn: nowhere{}, job: s.jobs[j.Namespace], place: i, over: make(chan struct{}), wake: make(chan struct{}, 1),
			known: map[string]bool{j.Namespace: true}, pings: map[uint32]chan struct{}{},
		}
		s.jobs[j.Namespace].nodes[i] = n
		nodes = append(nodes, n)
	}
	return nodes
}

type nowhere struct{}

func (nowhere) Read([]byte) (int, error)    { return 0, io.EOF }
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) Close() error                { return nil }
