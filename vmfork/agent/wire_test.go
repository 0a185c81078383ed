package agent

import (
	"net"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

func someIdentity() Identity {
	plan := network.NewPlan("a job")
	config := plan.Guest(7, []int{0, 7, 8})
	config.MTU, config.Gateway = 1450, plan.Host()
	return Identity{
		Clone: 2, Ticket: "a-t1", Member: 7, Name: "clone-7", Host: "here", VCPUs: 3,
		Network: config, Seed: make([]byte, 64), Time: time.Unix(0, 1e18),
		BootID: "b", MachineID: "m", Session: []byte("0123456789abcdef"), Fork: Fork{Call: "c", Checkpoint: "k"},
	}
}

func TestIdentitySurvivesTheWire(t *testing.T) {
	for _, want := range []Identity{someIdentity(), {Time: time.Unix(0, 5), Seed: []byte{}, Session: []byte{},
		Network: network.GuestConfig{MAC: net.HardwareAddr{}, Address: netip.MustParsePrefix("10.0.0.1/16"), Members: []network.Member{}}}} {
		got, err := ParseIdentity(want.encode())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v came back as %+v (%v)", want, got, err)
		}
	}
	members := someIdentity().Network.Members
	if got, err := decodeMembers(encodeMembers(members)); err != nil || !reflect.DeepEqual(got, members) {
		t.Errorf("%v came back as %v (%v)", members, got, err)
	}
}

func TestDamagedIdentity(t *testing.T) {
	whole := someIdentity().encode()
	for n := range whole {
		if _, err := ParseIdentity(whole[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes are an identity", n, len(whole))
		}
	}
	if _, err := ParseIdentity(append(whole, 0)); err == nil {
		t.Error("a byte too many is an identity")
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add(someIdentity().encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		id, err := ParseIdentity(data)
		if err != nil {
			return
		}
		again, err := ParseIdentity(id.encode())
		if err != nil || !reflect.DeepEqual(again, id) {
			t.Errorf("%+v came back as %+v (%v)", id, again, err)
		}
	})
}
