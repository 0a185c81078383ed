package network

import (
	"encoding/binary"
	"math"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var broadcast = net.HardwareAddr{255, 255, 255, 255, 255, 255}

func spare(t *testing.T, n *Network, id int) *os.File {
	t.Helper()
	file, err := n.Spare(id)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// must is for calls that are only to succeed.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// numbered is a frame that can be told from its like.
func numbered(to, from net.HardwareAddr, number int) []byte {
	f := frame(to, from, "")
	binary.BigEndian.PutUint64(f[body:], uint64(number))
	return f
}

func number(f []byte) int { return int(binary.BigEndian.Uint64(f[body:])) }

func send(t *testing.T, plug *os.File, f []byte) {
	t.Helper()
	if _, err := plug.Write(f); err != nil {
		t.Fatal(err)
	}
}

// drain is the numbers of all the frames that wait in a tap, or come until there is a pause.
func drain(t *testing.T, file *os.File) []int {
	t.Helper()
	return await(t, file, math.MaxInt, 100*time.Millisecond)
}

// await is the numbers of so many frames, or of those that come until there is a pause of a length. It ends when it has
// looked and found nothing, not when a timer says so: a test may have to wait for a processor for longer than that.
func await(t *testing.T, file *os.File, count int, pause time.Duration) (numbers []int) {
	t.Helper()
	buffer := make([]byte, 2048)
	for last := time.Now(); len(numbers) < count; {
		now, size := time.Now(), 0
		err := (&tap{file: file}).control(func(fd int) (err error) {
			size, err = unix.Read(fd, buffer)
			return err
		})
		switch {
		case err == unix.EAGAIN && now.Sub(last) > pause:
			return numbers
		case err == unix.EAGAIN:
			time.Sleep(200 * time.Microsecond)
			continue
		}
		must(t, err)
		last = time.Now()
		if isFrame(buffer[:size]) {
			numbers = append(numbers, number(buffer[:size]))
		}
	}
	return numbers
}

// count is 0, 1, …, n-1.
func count(n int) []int {
	numbers := make([]int, n)
	for i := range numbers {
		numbers[i] = i
	}
	return numbers
}

// A sender sends numbered frames until it is stopped, which says how many they were.
type sender struct {
	quit, sent chan int
	count      atomic.Int64
}

// It pauses after each so many, for what would fill every queue tells nothing.
func newSender(t *testing.T, plug *os.File, to, from net.HardwareAddr, burst int) *sender {
	s := &sender{quit: make(chan int), sent: make(chan int)}
	go func() {
		for i := 0; ; i++ {
			select {
			case <-s.quit:
				s.sent <- i
				return
			default:
			}
			if _, err := plug.Write(numbered(to, from, i)); err != nil {
				t.Errorf("send: %v", err)
			}
			s.count.Add(1)
			if i%burst == 0 {
				time.Sleep(50 * time.Microsecond)
			}
		}
	}()
	return s
}

// more waits until it has sent so many more.
func (s *sender) more(t *testing.T, n int64) {
	t.Helper()
	begin, deadline := s.count.Load(), time.Now().Add(30*time.Second)
	for ; s.count.Load() < begin+n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in 30 s not even %d frames were sent", n)
		}
	}
}

func (s *sender) stop() int {
	close(s.quit)
	return <-s.sent
}

func TestHandOverLosesNoFrame(t *testing.T) {
	n := create(t)
	from := addTap(t, n, 1)
	current := addTap(t, n, 2)
	up(t, n, 1, 2)
	read := func(file *os.File) chan []int {
		numbers := make(chan []int)
		go func() { numbers <- await(t, file, math.MaxInt, time.Second) }()
		return numbers
	}
	for range 4 {
		next := spare(t, n, 2)
		s := newSender(t, from, n.plan.MAC(2), n.plan.MAC(1), 256)
		old := read(current)
		s.more(t, 1000)
		begin := time.Now()
		must(t, n.HandOver(2))
		handed := time.Since(begin)
		successor := read(next)
		s.more(t, 1000)
		sent := s.stop()
		before, after := <-old, <-successor
		begin = time.Now()
		must(t, n.Retire(2))
		t.Logf("handed over in %v, retired in %v; %d frames to the old tap, %d to the spare", handed, time.Since(begin), len(before), len(after))
		if len(before) == 0 || len(after) == 0 {
			t.Error("the frames did not go to one tap first and then to the other")
		}
		got := slices.Concat(before, after)
		slices.Sort(got)
		if !slices.Equal(got, count(sent)) {
			t.Errorf("sent %d frames, received %d", sent, len(got))
		}
		current = next
	}
}

func TestRetireMovesWhatNobodyRead(t *testing.T) {
	n := create(t)
	from, old := addTap(t, n, 1), addTap(t, n, 2)
	up(t, n, 1, 2)
	if err := unix.SetNonblock(int(old.Fd()), false); err != nil {
		t.Fatal(err)
	}
	// As QEMU does for a guest with a virtio device of version 1.
	var header int32 = 12
	must(t, n.plugs[2].tap.control(func(fd int) error {
		return control(fd).do(unix.TUNSETVNETHDRSZ, unsafe.Pointer(&header))
	}))
	next := spare(t, n, 2)
	for i := range 10 {
		send(t, from, numbered(n.plan.MAC(2), n.plan.MAC(1), i))
	}
	send(t, from, numbered(broadcast, n.plan.MAC(1), 10))
	must(t, n.HandOver(2))
	for i := 11; i < 20; i++ {
		send(t, from, numbered(n.plan.MAC(2), n.plan.MAC(1), i))
	}
	must(t, n.Retire(2))
	if _, err := old.Read(make([]byte, 2048)); err == nil {
		t.Error("the old tap is still there")
	}
	got := drain(t, next)
	slices.Sort(got)
	if !slices.Equal(got, count(20)) {
		t.Errorf("received %v", got)
	}
	// The spare is the member's tap in every respect.
	must(t, n.Down(2))
	must(t, n.Up(2))
	send(t, from, numbered(n.plan.MAC(2), n.plan.MAC(1), 20))
	send(t, next, numbered(n.plan.MAC(1), n.plan.MAC(2), 21))
	if got := drain(t, next); !slices.Equal(got, []int{20}) {
		t.Errorf("after Down and Up: received %v", got)
	}
	if got := drain(t, from); !slices.Contains(got, 21) {
		t.Errorf("after Down and Up: the other received %v", got)
	}
}

// Nobody reads while a fork succeeds, or fails, in the middle of traffic.
func TestFramesAreMovedInTraffic(t *testing.T) {
	for _, name := range []string{"Retire", "HandBack"} {
		t.Run(name, func(t *testing.T) {
			n := create(t)
			from, old := addTap(t, n, 1), addTap(t, n, 2)
			up(t, n, 1, 2)
			next := spare(t, n, 2)
			s := newSender(t, from, n.plan.MAC(2), n.plan.MAC(1), 64)
			s.more(t, 200) // that the old tap has, and Retire has to move
			must(t, n.HandOver(2))
			s.more(t, 200) // that the spare has, and HandBack has to move
			heir := next
			if name == "Retire" {
				must(t, n.Retire(2))
			} else {
				must(t, n.HandBack(2))
				heir = old
			}
			sent := s.stop()
			got := drain(t, heir)
			slices.Sort(got)
			if !slices.Equal(got, count(sent)) {
				t.Errorf("sent %d frames, received %d", sent, len(got))
			}
		})
	}
}

func TestSpareGetsNothingBeforeHandOver(t *testing.T) {
	n := create(t)
	from, old := addTap(t, n, 1), addTap(t, n, 2)
	up(t, n, 1, 2)
	next := spare(t, n, 2)
	send(t, from, numbered(broadcast, n.plan.MAC(1), 0))
	send(t, from, numbered(n.plan.MAC(2), n.plan.MAC(1), 1))
	if got := drain(t, next); len(got) > 0 {
		t.Errorf("before HandOver the spare received %v", got)
	}
	if got := drain(t, old); !slices.Equal(got, count(2)) {
		t.Errorf("before HandOver the tap received %v", got)
	}
	must(t, n.HandOver(2))
	send(t, from, numbered(broadcast, n.plan.MAC(1), 2))
	if got := drain(t, next); !slices.Equal(got, []int{2}) {
		t.Errorf("after HandOver the spare received %v", got)
	}
	if got := drain(t, old); len(got) > 0 {
		t.Errorf("after HandOver the old tap received %v", got)
	}
	// The old machine runs on for a moment.
	drain(t, from)
	send(t, old, numbered(n.plan.MAC(1), n.plan.MAC(2), 3))
	if got := drain(t, from); !slices.Equal(got, []int{3}) {
		t.Errorf("of what the old tap sent after HandOver, another received %v", got)
	}
	send(t, from, numbered(n.plan.MAC(2), n.plan.MAC(1), 4))
	if got := drain(t, next); !slices.Equal(got, []int{4}) {
		t.Errorf("after the old tap sent, the spare received %v", got)
	}
}

func TestHandBack(t *testing.T) {
	n := create(t)
	from, old := addTap(t, n, 1), addTap(t, n, 2)
	up(t, n, 1, 2)
	for _, handed := range []bool{false, true, true} {
		spare(t, n, 2)
		if handed {
			must(t, n.HandOver(2))
		}
		send(t, from, numbered(n.plan.MAC(2), n.plan.MAC(1), 0))
		begin := time.Now()
		must(t, n.HandBack(2))
		t.Logf("handed back in %v", time.Since(begin))
		send(t, from, numbered(n.plan.MAC(2), n.plan.MAC(1), 1))
		send(t, from, numbered(broadcast, n.plan.MAC(1), 2))
		if got := drain(t, old); !slices.Equal(got, count(3)) {
			t.Errorf("handed over %v, and back: received %v", handed, got)
		}
	}
}

func TestSpareErrors(t *testing.T) {
	n := create(t)
	if _, err := n.Spare(1); err == nil {
		t.Error("a spare for a member without a tap")
	}
	addTap(t, n, 1)
	for name, f := range map[string]func(int) error{"HandOver": n.HandOver, "HandBack": n.HandBack, "Retire": n.Retire} {
		if err := f(1); err == nil {
			t.Errorf("%s without a spare", name)
		}
	}
	spare(t, n, 1)
	if _, err := n.Spare(1); err == nil {
		t.Error("a second spare")
	}
	if err := n.Retire(1); err == nil {
		t.Error("Retire before HandOver")
	}
	must(t, n.HandOver(1))
	if err := n.HandOver(1); err == nil {
		t.Error("handed over twice")
	}
}

// A member's number is used again while the QEMU process of the one before still has its taps open.
func TestNumberIsFreeAfterRemove(t *testing.T) {
	n := create(t)
	from := addTap(t, n, 2)
	up(t, n, 2)
	for _, state := range []string{"tap", "spare", "handed over", "retired"} {
		holders := []*os.File{addTap(t, n, 1)}
		up(t, n, 1)
		if state != "tap" {
			holders = append(holders, spare(t, n, 1))
		}
		if state == "handed over" || state == "retired" {
			must(t, n.HandOver(1))
		}
		if state == "retired" {
			must(t, n.Retire(1))
			holders = holders[1:]
		}
		for _, file := range holders {
			fd, err := unix.Dup(int(file.Fd()))
			must(t, err)
			t.Cleanup(func() { unix.Close(fd) })
		}
		must(t, n.Remove(1))
		again := addTap(t, n, 1)
		up(t, n, 1)
		send(t, from, numbered(n.plan.MAC(1), n.plan.MAC(2), 7))
		if got := drain(t, again); !slices.Equal(got, []int{7}) {
			t.Errorf("%s: received %v", state, got)
		}
		must(t, n.Remove(1))
	}
}

// The end of one ticket's clones must not be another machine's pause.
func TestHandOverDoesNotWaitForRemovals(t *testing.T) {
	n := create(t)
	addTap(t, n, 0)
	up(t, n, 0)
	const clones, rounds = 24, 8
	for id := 1; id <= clones; id++ {
		addTap(t, n, id)
		up(t, n, id)
	}
	removed := make(chan time.Duration)
	for id := 1; id <= clones; id++ {
		go func() {
			begin := time.Now()
			if err := n.Remove(id); err != nil {
				t.Error(err)
			}
			removed <- time.Since(begin)
		}()
	}
	var waits []time.Duration
	begin := time.Now()
	for range rounds {
		begin := time.Now()
		spare(t, n, 0)
		made := time.Since(begin)
		begin = time.Now()
		must(t, n.HandOver(0))
		waits = append(waits, time.Since(begin))
		t.Logf("spare made in %v, handed over in %v", made, time.Since(begin))
		must(t, n.HandBack(0))
	}
	t.Logf("%d rounds in %v", rounds, time.Since(begin))
	var longest time.Duration
	for range clones {
		longest = max(longest, <-removed)
	}
	slices.Sort(waits)
	t.Logf("the last of %d taps was removed after %v; HandOver took %v in the median, at most %v", clones, longest, waits[rounds/2], waits[rounds-1])
	if waits[rounds/2] > longest/4 {
		t.Errorf("HandOver took %v, the removal of all others %v", waits[rounds/2], longest)
	}
}

// A queue has to hold what comes in a pause of 100 ms. What that is depends on the sender: here it is one that does
// nothing but write to its tap, which is what QEMU does with a guest's frames at its best.
func TestQueueOutlastsAPause(t *testing.T) {
	n := create(t)
	from, to := addTap(t, n, 1), addTap(t, n, 2)
	up(t, n, 1, 2)
	f, sent := frame(n.plan.MAC(2), n.plan.MAC(1), ""), 0
	must(t, (&tap{file: from}).control(func(fd int) error {
		for begin := time.Now(); time.Since(begin) < 100*time.Millisecond && sent < queueLength; sent++ {
			if _, err := unix.Write(fd, f); err != nil {
				return err
			}
		}
		return nil
	}))
	got := len(await(t, to, sent, 5*time.Second))
	t.Logf("%d frames in 100 ms", sent)
	if got != sent {
		t.Errorf("sent %d frames, of which %d were kept", sent, got)
	}
}
