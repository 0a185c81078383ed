package multicast

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func testEnds() (keyring, end, end) {
	return newKeyring(testKey), end{1, session{1}}, end{2, session{2}}
}

// TestSeal opens what was sealed, with both ciphers, and nothing that was changed anywhere.
func TestSeal(t *testing.T) {
	keys, a, b := testEnds()
	for _, c := range []suite{aesGCM, chacha20Poly1305} {
		key := func(c suite) []byte { return keys.pairKey(c, request, a, b) }
		aead, err := c.aead(key(c))
		if err != nil {
			t.Fatal(err)
		}
		out := newSealer(request, a, key)
		out.aead, out.header[1] = aead, byte(c)
		seal := func(text string) []byte {
			p, _ := out.seal(append(make([]byte, headerSize, 100), text...))
			return p
		}
		in := &opener{key: key}
		open := func(p []byte) ([]byte, error) {
			h, err := parseHeader(p)
			if err != nil {
				return nil, err
			}
			return in.open(h, bytes.Clone(p))
		}
		p := seal("hello")
		if bytes.Contains(p, []byte("hello")) {
			t.Error("the message can be read")
		}
		for i := range p {
			for bit := range 8 {
				q := bytes.Clone(p)
				q[i] ^= 1 << bit
				if _, err := open(q); err == nil {
					t.Fatalf("cipher %d: opens with bit %d of byte %d changed", c, bit, i)
				}
			}
		}
		for n := range p {
			if _, err := open(p[:n]); err == nil {
				t.Fatalf("cipher %d: opens when cut to %d bytes", c, n)
			}
		}
		if m, err := open(p); err != nil || string(m) != "hello" {
			t.Fatalf("cipher %d: %q, %v", c, m, err)
		}
		if _, err := open(p); err != errReplayed {
			t.Errorf("cipher %d: opened twice: %v", c, err)
		}
		if m, err := open(seal("again")); err != nil || string(m) != "again" {
			t.Errorf("cipher %d: %q, %v", c, m, err)
		}
	}
}

// TestKeysDiffer finds the same key nowhere twice.
func TestKeysDiffer(t *testing.T) {
	keys, a, b := testEnds()
	other := newKeyring([32]byte{9})
	a2 := end{a.host, session{3}}
	id1, id2 := randomID(1), randomID(2)
	seen := map[string]string{}
	for name, key := range map[string][]byte{
		"group": keys.groupKey(aesGCM, a, id1), "another id": keys.groupKey(aesGCM, a, id2),
		"another cipher": keys.groupKey(chacha20Poly1305, a, id1), "another session": keys.groupKey(aesGCM, a2, id1),
		"another job": other.groupKey(aesGCM, a, id1), "request": keys.pairKey(aesGCM, request, a, b),
		"the other way": keys.pairKey(aesGCM, request, b, a), "reply": keys.pairKey(aesGCM, reply, b, a),
		"a peer's other session": keys.pairKey(aesGCM, request, a2, b),
	} {
		if before, ok := seen[string(key)]; ok {
			t.Errorf("%s and %s have one key", name, before)
		}
		seen[string(key)] = name
		if len(key) != 32 {
			t.Errorf("%s: %d bytes", name, len(key))
		}
	}
}

func TestGroupAddresses(t *testing.T) {
	keys, _, _ := testEnds()
	for seed := range uint64(20000) {
		g := keys.groupOf(0, randomID(seed))
		ip := g.Addr().As4()
		if ip[0] != 239 || ip[1]&0x7f == 0 && ip[2] == 0 {
			t.Fatalf("%s is flooded by switches, or not administratively scoped", g)
		}
		if g.Port() < 1<<14 || g.Port() >= 1<<15 {
			t.Fatalf("port %d", g.Port())
		}
	}
	if keys.objectGroup(1, randomID(1)).Addr() != keys.objectGroup(1, randomID(2)).Addr() {
		t.Error("two objects of one origin have two addresses")
	}
}

func TestOrigin(t *testing.T) {
	o := Origin{Host: 513, Address: netip.MustParseAddrPort("10.1.2.3:4567"), Session: [8]byte{1, 2, 3}}
	p, err := o.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var got Origin
	if err := got.UnmarshalBinary(p); err != nil || got != o {
		t.Errorf("%v, %v", got, err)
	}
	if err := got.UnmarshalBinary(p[:len(p)-1]); err == nil {
		t.Error("a part of an origin was taken")
	}
	if _, err := (Origin{Host: 1}).MarshalBinary(); err == nil {
		t.Error("an origin without an address was written")
	}
}

// TestReplayAndForgery lets an attacker on the network send again what it has heard, and change it, while a transfer
// goes on. Nothing of that has any effect, except that it is counted.
func TestReplayAndForgery(t *testing.T) {
	virtual(t, 2, nil, nil, func(t *testing.T, c *cluster) {
		type heard struct {
			p        []byte
			from, to netip.AddrPort
		}
		var mu sync.Mutex
		var all []heard
		c.wire.mu.Lock()
		c.wire.tap = func(p []byte, from, to netip.AddrPort) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, heard{bytes.Clone(p), from, to})
		}
		c.wire.mu.Unlock()
		o := openAll(c, 1, 1<<20)
		if err := o.fetches[0].Bring(inTime(t, time.Second), 0, 10); err != nil {
			t.Fatal(err)
		}
		c.wire.mu.Lock()
		c.wire.tap = nil
		c.wire.mu.Unlock()
		time.Sleep(time.Second)

		sent := c.sender.Counters()
		taken := c.receivers[0].Counters()
		dropped := func() (n uint64) {
			for _, k := range []Counters{c.sender.Counters(), c.receivers[0].Counters(), c.receivers[1].Counters()} {
				n += k.Dropped
			}
			return n
		}
		for _, h := range all {
			c.wire.carry(h.p, h.from, h.to) // again
			q := bytes.Clone(h.p)
			q[len(q)-1] ^= 1
			c.wire.carry(q, h.from, h.to) // changed
			q = bytes.Clone(h.p)
			binary.BigEndian.PutUint64(q[12:], binary.BigEndian.Uint64(q[12:])+1000)
			c.wire.carry(q, h.from, h.to) // as if it were new
			q = bytes.Clone(h.p)
			q[4] ^= 1
			c.wire.carry(q, h.from, h.to) // of a session that nobody knows
		}
		time.Sleep(10 * time.Millisecond)
		after := c.sender.Counters()
		if after.Urgent != sent.Urgent || after.Blocks != sent.Blocks {
			t.Errorf("requests were answered that nobody made: %d blocks for %d", after.Blocks, sent.Blocks)
		}
		if after.Replayed == 0 || c.receivers[0].Counters().Replayed == 0 {
			t.Error("replays were not counted")
		}
		if n := dropped(); n < uint64(3*len(all)) {
			t.Errorf("%d packets of %d forged ones were dropped", n, 3*len(all))
		}
		if n := c.receivers[0].Counters().Blocks; n != taken.Blocks {
			t.Errorf("%d blocks arrived from the attacker", n-taken.Blocks)
		}
		// What is true still works.
		if err := o.fetches[1].Bring(inTime(t, time.Second), 20, 10); err != nil || !o.has(1, 20) {
			t.Errorf("after that: %v", err)
		}
	})
}

// TestOtherJob is two jobs with different keys whose hosts have the same numbers.
func TestOtherJob(t *testing.T) {
	virtual(t, 1, nil, nil, func(t *testing.T, c *cluster) {
		stranger, err := NewReceiver(ReceiverConfig{Self: 1, Address: hostAddress(1), Key: [32]byte{7}, network: c.wire})
		if err != nil {
			t.Fatal(err)
		}
		defer stranger.Close()
		m, id := newImage(1, 1<<20), randomID(1)
		if err := c.sender.Serve(id, m); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := stranger.Open(ctx, c.sender.Origin(), id, m.Size(), newSink(m.Size())); err == nil {
			t.Error("a host of another job was let in")
		}
		if c.sender.Counters().Dropped == 0 || c.sender.Counters().PacketsSent != 0 {
			t.Error("it was answered")
		}
	})
}
