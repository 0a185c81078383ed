package network

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
)

func TestPlanIsOneToOne(t *testing.T) {
	plan := NewPlan("job")
	if err := plan.Check(); err != nil {
		t.Fatal(err)
	}
	macs := map[string]bool{plan.HostMAC().String(): true}
	last := plan.Subnet.Addr()
	for id := 0; id <= MaxID; id++ {
		ip := plan.IP(id)
		if !plan.Subnet.Contains(ip) || !last.Less(ip) || ip == plan.Host() {
			t.Fatalf("IP(%d) = %v, after %v", id, ip, last)
		}
		last = ip
		if got, ok := plan.ID(ip); !ok || got != id {
			t.Fatalf("ID(%v) = %d, %v; want %d", ip, got, ok, id)
		}
		mac := plan.MAC(id)
		if mac[0]&3 != 2 || macs[mac.String()] {
			t.Fatalf("MAC(%d) = %v: not local and unicast, or not unique", id, mac)
		}
		macs[mac.String()] = true
	}
}

func TestPlanIDRefusesStrangers(t *testing.T) {
	plan := Plan{Subnet: netip.MustParsePrefix("10.7.0.0/16")}
	for _, address := range []string{"10.7.0.0", "10.7.255.254", "10.7.255.255", "10.8.0.1", "::1", "::ffff:10.7.0.1"} {
		if id, ok := plan.ID(netip.MustParseAddr(address)); ok {
			t.Errorf("ID(%s) = %d", address, id)
		}
	}
	if id, ok := plan.ID(netip.Addr{}); ok {
		t.Errorf("ID of no address = %d", id)
	}
}

func TestPlanFollowsFromJob(t *testing.T) {
	// A fixed value: hosts of different versions must agree.
	if got := NewPlan("job").Subnet.String(); got != "10.94.0.0/16" {
		t.Errorf("the subnet of \"job\" became %s", got)
	}
	subnets := map[netip.Prefix]bool{}
	for _, job := range []string{"a", "b", "c", "d", "e", "f"} {
		subnets[NewPlan(job).Subnet] = true
	}
	if len(subnets) < 2 {
		t.Error("the subnet does not depend on the job")
	}
}

func TestPlanCheck(t *testing.T) {
	for _, subnet := range []string{"10.1.0.0/24", "10.1.2.0/16", "fd00::/16"} {
		if err := (Plan{Subnet: netip.MustParsePrefix(subnet)}).Check(); err == nil {
			t.Errorf("%s passes", subnet)
		}
	}
	if err := (Plan{}).Check(); err == nil {
		t.Error("the zero Plan passes")
	}
}

func TestPlanNames(t *testing.T) {
	plan := NewPlan("job")
	for id, want := range map[int]string{0: "parent", 1: "clone-1", 12: "clone-12"} {
		if got := plan.Name(id); got != want {
			t.Errorf("Name(%d) = %q, want %q", id, got, want)
		}
	}
}

func TestPlanGuest(t *testing.T) {
	plan := Plan{Subnet: netip.MustParsePrefix("10.7.0.0/16")}
	config := plan.Guest(2, []int{1, 2, 3})
	if got := config.Address.String(); got != "10.7.0.3/16" {
		t.Errorf("address %s", got)
	}
	var names []string
	for _, member := range config.Members {
		names = append(names, member.Name)
	}
	if want := []string{"host", "clone-1", "clone-3"}; !reflect.DeepEqual(names, want) {
		t.Errorf("members %v, want %v", names, want)
	}

	// It goes to the agent as JSON.
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	var back GuestConfig
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, config) {
		t.Errorf("%+v came back as %+v", config, back)
	}
}
