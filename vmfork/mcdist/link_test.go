package mcdist

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestACutIsSurvived(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(8000)
	f, to := c.open(1, 0, c.serve(0, m), m)
	ctx := within(t)
	done := make(chan error, 1)
	go func() { done <- f.Prefetch(ctx, blocksFrom(0, 8000)) }()
	eventually(t, "bulk comes", func() bool { return to.count() > 10 })
	c.sever(0, 1)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := f.Bring(ctx, 7900+int64(i), 1); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(time.Second)
	c.heal(0, 1)
	wg.Wait()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	to.has(0, 8000)
	if c.nodes[1].Counters().Redials == 0 {
		t.Error("no connection was made again")
	}
}

func TestAHostThatIsGone(t *testing.T) {
	c := newCluster(t, 2, func(config *Config) { config.Patience = 300 * time.Millisecond })
	m := newMemory(10)
	f, _ := c.open(1, 0, c.serve(0, m), m)
	c.sever(0, 1)
	err := f.Bring(within(t), 0, 1)
	var silent *SilentError
	if !errors.As(err, &silent) || silent.Host != "h0" || silent.Waited != 300*time.Millisecond || !strings.Contains(err.Error(), "no route to host") {
		t.Errorf("Bring: %v", err)
	}
	if err := f.Prefetch(within(t), blocksFrom(0, 3)); !errors.As(err, &silent) {
		t.Errorf("Prefetch: %v", err)
	}
	if _, err := c.nodes[1].Receive(within(t), 0, testID()); !errors.As(err, &silent) {
		t.Errorf("Receive: %v", err)
	}
}

// TestAnObjectThatTakesItsTime is published after more than the patience that the hosts have with each other.
func TestAnObjectThatTakesItsTime(t *testing.T) {
	c := newCluster(t, 2, func(config *Config) { config.Patience = 100 * time.Millisecond })
	id := testID()
	go func() {
		time.Sleep(400 * time.Millisecond)
		if err := c.nodes[0].Publish(id, []byte("late"), nil); err != nil {
			t.Error(err)
		}
	}()
	if got, err := c.nodes[1].Receive(within(t), 0, id); err != nil || string(got) != "late" {
		t.Errorf("received %q, %v", got, err)
	}
}

func TestAHostThatSaysNothing(t *testing.T) {
	c := newCluster(t, 2, func(config *Config) { config.Patience = 200 * time.Millisecond })
	m := newMemory(10)
	release := make(chan struct{})
	m.before = func(int64) error { <-release; return nil }
	defer close(release)
	f, _ := c.open(1, 0, c.serve(0, m), m)
	err := f.Bring(within(t), 0, 1)
	var silent *SilentError
	if !errors.As(err, &silent) || silent.Cause != nil {
		t.Errorf("Bring: %v", err)
	}
}

func TestAnOriginThatEndsSaysSo(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(10)
	release := make(chan struct{})
	m.before = func(int64) error { <-release; return nil }
	f, _ := c.open(1, 0, c.serve(0, m), m)
	done := make(chan error, 1)
	go func() { done <- f.Bring(within(t), 0, 1) }()
	eventually(t, "the origin reads", func() bool { return m.inside.Load() == 1 })
	go func() {
		time.Sleep(20 * time.Millisecond)
		close(release)
	}()
	c.nodes[0].Close()
	var refused *RefusedError
	if err := <-done; err != nil && !errors.As(err, &refused) {
		t.Errorf("Bring: %v", err)
	}
	// It says so to those who come later, too.
	if err := f.Bring(within(t), 5, 1); !errors.As(err, &refused) {
		t.Errorf("Bring: %v", err)
	}
}

// TestStrangeBytes gives a node what no node sends.
func TestStrangeBytes(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(10)
	id := c.serve(0, m)
	hello := appendHello(nil, urgent)
	newer := appendHello(nil, urgent)
	newer[headerSize+4] = version + 1
	huge := begin(nil, kindWant, 0, 1)
	huge[0], huge[1], huge[2] = 0xff, 0xff, 0xff
	for name, bytes := range map[string][]byte{
		"noise":        []byte("GET / HTTP/1.1\r\nHost: h0\r\n\r\n"),
		"newer":        newer,
		"oversized":    append(hello, huge...),
		"empty want":   append(hello, appendWant(nil, 0, 1, id, nil)...),
		"want nothing": append(hello, appendWant(nil, 0, 1, id, []span{{3, 0}})...),
		"want all":     append(hello, appendWant(nil, 0, 1, id, []span{{maxBlocks, 1}})...),
		"answer":       append(hello, end(append(beginBlocks(nil, 1, 0, 1), make([]byte, 4096)...), 0)...),
	} {
		t.Run(name, func(t *testing.T) {
			a, b := net.Pipe()
			c.nodes[0].Accept(b, 1)
			defer a.Close()
			_ = a.SetDeadline(time.Now().Add(30 * time.Second))
			go a.Write(bytes)
			f, err := newFrameReader(a).next()
			if err != nil || f.kind != kindRefuse || f.number != 0 {
				t.Fatalf("answered with %+v, %v", f, err)
			}
		})
	}
	f, to := c.open(1, 0, id, m)
	if err := f.Bring(within(t), 0, 10); err != nil {
		t.Fatal(err)
	}
	to.has(0, 10)
}

// TestStrangeAnswers gives a fetch what no node answers.
func TestStrangeAnswers(t *testing.T) {
	for name, answer := range map[string][]byte{
		"beyond the end": end(append(beginBlocks(nil, 1, 9, 2), make([]byte, 8192)...), 0),
		"too short":      end(append(beginBlocks(nil, 1, 0, 2), make([]byte, 4096)...), 0),
		"no blocks":      end(beginBlocks(nil, 1, 0, 0), 0),
		"bad packing": func() []byte {
			b := end(append(beginBlocks(nil, 1, 0, 1), 1, 2, 3), 0)
			setFlags(b, 0, flagPacked)
			return b
		}(),
		"not this":  appendBare(nil, kindDone, 1),
		"oversized": {255, 255, 255, 255, byte(kindBlocks), 0, 0, 0, 1, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			config := Config{Self: 1, Hosts: make([]Host, 2), Mode: Unicast, Patience: 300 * time.Millisecond}
			config.Dial = func(context.Context, int) (net.Conn, error) {
				a, b := net.Pipe()
				go func() {
					r := newFrameReader(b)
					r.next()
					r.next()
					b.Write(answer)
				}()
				return a, nil
			}
			n, err := New(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			m := newMemory(10)
			to := newCopy(t, m)
			f, err := n.Open(0, testID(), m.Size(), to)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Bring(within(t), 0, 1); err == nil {
				t.Error("it was taken")
			}
			if to.count() != 0 {
				t.Error("blocks came")
			}
		})
	}
}

func TestOverPipes(t *testing.T) { // whose writes wait for reads
	var nodes [2]*Node
	for i := range nodes {
		n, err := New(t.Context(), Config{Self: i, Hosts: make([]Host, 2), Mode: Unicast,
			Dial: func(_ context.Context, to int) (net.Conn, error) {
				a, b := net.Pipe()
				nodes[to].Accept(b, i)
				return a, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		nodes[i] = n
	}
	m := newMemory(2000)
	id := testID()
	if err := nodes[0].Serve(id, m); err != nil {
		t.Fatal(err)
	}
	to := newCopy(t, m)
	f, err := nodes[1].Open(0, id, m.Size(), to)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Prefetch(within(t), blocksFrom(0, 2000)); err != nil {
			t.Error(err)
		}
	})
	for i := range int64(50) {
		wg.Go(func() {
			if err := f.Bring(within(t), i*37, 9); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	to.has(0, 2000)
}

func TestNewRefuses(t *testing.T) {
	dial := func(context.Context, int) (net.Conn, error) { return nil, errors.New("no") }
	for _, config := range []Config{
		{Self: 1, Hosts: make([]Host, 1), Dial: dial},
		{Self: -1, Hosts: make([]Host, 1), Dial: dial},
		{Self: 0, Hosts: make([]Host, 2)},
		{Self: 0, Hosts: make([]Host, maxHosts+1), Dial: dial},
	} {
		if _, err := New(t.Context(), config); err == nil {
			t.Errorf("%+v was taken", config)
		}
	}
}
