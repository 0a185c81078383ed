package mcdist

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestBringOneBlock(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(100)
	f, to := c.open(1, 0, c.serve(0, m), m)
	if err := f.Bring(within(t), 17, 1); err != nil {
		t.Fatal(err)
	}
	to.has(17, 1)
	if to.count() != 1 {
		t.Errorf("%d blocks have come", to.count())
	}
	got := c.nodes[1].Counters()
	if got.RoundTrips.Urgent != 1 || got.Received[ByUnicast].Urgent.Blocks != 1 || got.Latency.Count() != 1 {
		t.Errorf("counters: %+v", got)
	}
}

func TestAWindowIsOneRoundTrip(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(2000)
	f, to := c.open(1, 0, c.serve(0, m), m)
	if err := f.Bring(within(t), 3, 1900); err != nil {
		t.Fatal(err)
	}
	to.has(3, 1900)
	got := c.nodes[1].Counters()
	if got.Requests.Urgent != 1 || got.BlocksPerRoundTrip() != 1900 {
		t.Errorf("%d requests, %v blocks per round trip", got.Requests.Urgent, got.BlocksPerRoundTrip())
	}
}

func TestBringsOfTheSameBlocksShareAnAnswer(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(64)
	release := make(chan struct{})
	m.before = func(int64) error { <-release; return nil }
	f, to := c.open(1, 0, c.serve(0, m), m)
	ctx := within(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := f.Bring(ctx, int64(i%4)*4, 8); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the origin reads", func() bool { return m.inside.Load() > 0 })
	// Who was the first to ask gives up; those who share its answer must not notice.
	impatient, cancel := context.WithCancel(ctx)
	cancel()
	if err := f.Bring(impatient, 40, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a Bring that was canceled returned %v", err)
	}
	wg.Go(func() {
		if err := f.Bring(ctx, 40, 2); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(10 * time.Millisecond)
	close(release)
	wg.Wait()
	to.has(0, 20)
	to.has(40, 2)
	if m.reads.Load() != 22 {
		t.Errorf("%d blocks were read for 22", m.reads.Load())
	}
}

func TestPrefetch(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(5000)
	f, to := c.open(1, 0, c.serve(0, m), m)
	if err := f.Prefetch(within(t), blocksFrom(10, 4900)); err != nil {
		t.Fatal(err)
	}
	to.has(10, 4900)
	if m.reads.Load() != 4900 {
		t.Errorf("%d blocks were read for 4900", m.reads.Load())
	}
	// What is here already is not asked for.
	if err := f.Prefetch(within(t), blocksFrom(0, 5000)); err != nil {
		t.Fatal(err)
	}
	if m.reads.Load() != 5000 {
		t.Errorf("%d blocks were read for 5000", m.reads.Load())
	}
}

func TestFaultsOvertakeBulk(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(6000)
	f, to := c.open(1, 0, c.serve(0, m), m)
	to.before = func(first, n int64) error {
		if n > 1 {
			time.Sleep(2 * time.Millisecond) // the host is slow to keep what comes
		}
		return nil
	}
	ctx, cancel := context.WithCancel(within(t))
	done := make(chan error, 1)
	go func() { done <- f.Prefetch(ctx, blocksFrom(0, 5000)) }()
	eventually(t, "bulk comes", func() bool { return to.count() > 50 })
	for b := int64(5500); b < 5540; b += 4 {
		before := to.count()
		if err := f.Bring(ctx, b, 1); err != nil {
			t.Fatal(err)
		}
		to.has(b, 1)
		if passed := to.count() - before; passed > 2500 { // on any machine, however busy
			t.Errorf("%d blocks have come before a fault's", passed)
		}
	}
	if to.count() < 5000 {
		t.Logf("%d blocks of bulk have come beside 10 faults", to.count())
	}
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Prefetch returned %v", err)
	}
}

func TestUnknownSlice(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(10)
	f, _ := c.open(1, 0, testID(), m)
	err := f.Bring(within(t), 0, 1)
	if !errors.Is(err, ErrWithdrawn) || !strings.Contains(err.Error(), "h0") {
		t.Errorf("Bring of an unknown slice: %v", err)
	}
	if err := f.Prefetch(within(t), blocksFrom(0, 5)); !errors.Is(err, ErrWithdrawn) {
		t.Errorf("Prefetch of an unknown slice: %v", err)
	}
	if err := f.Bring(within(t), 5, 6); err == nil || errors.Is(err, ErrWithdrawn) {
		t.Errorf("Bring beyond the end: %v", err)
	}
}

func TestASourceThatFails(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(100)
	m.before = func(first int64) error {
		if first >= 50 {
			return errors.New("the disk is broken")
		}
		return nil
	}
	f, to := c.open(1, 0, c.serve(0, m), m)
	if err := f.Bring(within(t), 50, 1); err == nil || !strings.Contains(err.Error(), "the disk is broken") {
		t.Errorf("Bring: %v", err)
	}
	if err := f.Prefetch(within(t), blocksFrom(40, 20)); err == nil || !strings.Contains(err.Error(), "the disk is broken") {
		t.Errorf("Prefetch: %v", err)
	}
	if err := f.Bring(within(t), 0, 10); err != nil {
		t.Error(err)
	}
	to.has(0, 10)
}

func TestASinkThatFails(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(100)
	f, to := c.open(1, 0, c.serve(0, m), m)
	full := true
	to.before = func(int64, int64) error {
		if full {
			return errors.New("no space left on device")
		}
		return nil
	}
	if err := f.Bring(within(t), 50, 3); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Bring: %v", err)
	}
	if err := f.Prefetch(within(t), blocksFrom(0, 20)); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Prefetch: %v", err)
	}
	full = false
	if err := f.Bring(within(t), 0, 60); err != nil {
		t.Error(err)
	}
	to.has(0, 60)
}

func TestWithdrawWhileFetching(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(8000)
	id := c.serve(0, m)
	f, to := c.open(1, 0, id, m)
	done := make(chan error, 1)
	go func() { done <- f.Prefetch(within(t), blocksFrom(0, 8000)) }()
	eventually(t, "bulk comes", func() bool { return to.count() > 10 })
	c.nodes[0].Withdraw(id)
	if n := m.inside.Load(); n != 0 {
		t.Errorf("%d reads go on after Withdraw", n)
	}
	if err := <-done; err != nil && !errors.Is(err, ErrWithdrawn) {
		t.Error(err)
	}
	if err := f.Bring(within(t), 7999, 1); err != nil && !errors.Is(err, ErrWithdrawn) {
		t.Error(err)
	}
}

func TestCloseEndsWhatWaits(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := newMemory(64)
	release := make(chan struct{})
	m.before = func(int64) error { <-release; return nil }
	f, to := c.open(1, 0, c.serve(0, m), m)
	done := make(chan error, 2)
	go func() { done <- f.Bring(within(t), 0, 8) }()
	go func() { done <- f.Prefetch(within(t), blocksFrom(16, 8)) }()
	eventually(t, "the origin reads", func() bool { return m.inside.Load() == 2 })
	f.Close()
	close(release)
	if err := <-done; err != nil && !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	time.Sleep(20 * time.Millisecond)
	if to.count() != 0 {
		t.Errorf("%d blocks came to a fetch that was closed", to.count())
	}
	if err := f.Bring(within(t), 30, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("Bring after Close: %v", err)
	}
}

func TestPublish(t *testing.T) {
	c := newCluster(t, 3, nil)
	for _, size := range []int{0, 1, 4096, 200_001, 3 << 20} {
		id, data := testID(), bytes.Repeat([]byte("descriptor"), size/10+1)[:size]
		early := make(chan []byte, 1)
		go func() { // waits before it is published
			got, err := c.nodes[2].Receive(within(t), 0, id)
			if err != nil {
				t.Error(err)
			}
			early <- got
		}()
		time.Sleep(5 * time.Millisecond)
		if err := c.nodes[0].Publish(id, data, []int{1}); err != nil {
			t.Fatal(err)
		}
		got, err := c.nodes[1].Receive(within(t), 0, id)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) || !bytes.Equal(<-early, data) {
			t.Errorf("an object of %d bytes came with another content", size)
		}
	}
}

func TestReceiveWaitsNoLongerThanItsContext(t *testing.T) {
	c := newCluster(t, 2, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	id := testID()
	_, err := c.nodes[1].Receive(ctx, 0, id)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "h0") {
		t.Errorf("Receive: %v", err)
	}
	eventually(t, "the origin forgets the question", func() bool {
		c.nodes[0].mu.Lock()
		defer c.nodes[0].mu.Unlock()
		return len(c.nodes[0].askers) == 0
	})
}

func TestPush(t *testing.T) {
	c := newCluster(t, 3, nil)
	m := newMemory(3000)
	id := c.serve(0, m)
	_, one := c.open(1, 0, id, m)
	var blocks []int64
	for b := int64(0); b < 3000; b += 3 {
		blocks = append(blocks, b)
	}
	if err := c.nodes[0].Push(id, []int{1, 2}, blocks); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is pushed comes", func() bool { return one.count() == 1000 })
	_, two := c.open(2, 0, id, m) // after the push
	eventually(t, "what was pushed comes", func() bool { return two.count() == 1000 })
	one.has(2997, 1)
	two.has(2997, 1)
}
