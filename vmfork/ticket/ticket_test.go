package ticket

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// members are 1…n.
func members(n int) (m []int) {
	for i := range n {
		m = append(m, i+1)
	}
	return m
}

func TestRanksFollowFromTheTicket(t *testing.T) {
	plan := network.NewPlan("a job")
	for _, c := range []struct {
		name      string
		clones    int
		vcpus, np int
		want      [][]int
	}{
		{"one each", 3, 1, 3, [][]int{{0}, {1}, {2}}},
		{"hierarchical", 2, 2, 4, [][]int{{0, 1}, {2, 3}}},
		{"the last one is not full", 2, 2, 3, [][]int{{0, 1}, {2}}},
		{"oversubscribed evenly", 2, 1, 5, [][]int{{0, 1}, {2, 3, 4}}},
		{"oversubscribed by three", 2, 1, 6, [][]int{{0, 1, 2}, {3, 4, 5}}},
		{"no clones", 0, 1, 2, [][]int{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := New("t", plan, 9, members(c.clones), slices.Repeat([]int{c.vcpus}, c.clones), everywhere).Ranks(c.np)
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// everywhere are the hosts of tickets whose hosts do not matter.
var everywhere = slices.Repeat([]string{"here"}, 10)

func TestTicketSurvivesJSON(t *testing.T) {
	want := New("t", network.NewPlan("a job"), 4, []int{1, 2, 5}, []int{2, 2, 1}, everywhere)
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(data)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
}

// Names and addresses follow from the numbers on the network, which need not be
// without gaps: ids are.
func TestClonesOfATicket(t *testing.T) {
	plan := network.NewPlan("a job")
	tk := New("t", plan, 9, []int{2, 3, 700}, []int{4, 4, 1}, everywhere)
	want := []Clone{
		{ID: 1, Member: 2, Name: "clone-2", IP: plan.IP(2), VCPUs: 4, Host: "here"},
		{ID: 2, Member: 3, Name: "clone-3", IP: plan.IP(3), VCPUs: 4, Host: "here"},
		{ID: 3, Member: 700, Name: "clone-700", IP: plan.IP(700), VCPUs: 1, Host: "here"},
	}
	if tk.ID != "t" || tk.Asked != 9 || !reflect.DeepEqual(tk.Clones, want) {
		t.Errorf("the ticket is %+v", tk)
	}
	if got := tk.Members(); !reflect.DeepEqual(got, []int{2, 3, 700}) {
		t.Errorf("its members are %v", got)
	}
	if got := tk.Slots(); got != 9 {
		t.Errorf("it has %d slots, want 9", got)
	}
	// Unevenly large clones get as many ranks as they have slots.
	if got := tk.Ranks(9); !reflect.DeepEqual(got, [][]int{{0, 1, 2, 3}, {4, 5, 6, 7}, {8}}) {
		t.Errorf("nine ranks are %v", got)
	}
	if err := tk.Check(); err != nil {
		t.Error(err)
	}
}

func TestBadTickets(t *testing.T) {
	for want, text := range map[string]string{
		"it has no id":           `{"asked":1}`,
		"2 clones for 1":         `{"id":"x","asked":1,"clones":[{"id":1,"ip":"10.0.0.1","vcpus":1},{"id":2,"ip":"10.0.0.2","vcpus":1}]}`,
		"clone id 0":             `{"id":"x","asked":1,"clones":[{"ip":"10.0.0.1","vcpus":1}]}`,
		"clone id 65001":         `{"id":"x","asked":1,"clones":[{"id":65001,"ip":"10.0.0.1","vcpus":1}]}`,
		"clone 1 is in it twice": `{"id":"x","asked":2,"clones":[{"id":1,"ip":"10.0.0.1","vcpus":1},{"id":1,"ip":"10.0.0.2","vcpus":1}]}`,
		"clone 1 has no address": `{"id":"x","asked":1,"clones":[{"id":1,"vcpus":1}]}`,
		"0 virtual CPUs":         `{"id":"x","asked":1,"clones":[{"id":1,"ip":"10.0.0.1"}]}`,
		"not ordered by address": `{"id":"x","asked":2,"clones":[{"id":1,"ip":"10.0.0.2","vcpus":1},{"id":2,"ip":"10.0.0.1","vcpus":1}]}`,
		"read ticket":            `{]`,
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	data, _ := json.Marshal(New("t", network.NewPlan("a job"), 4, []int{1, 2, 5}, []int{2, 2, 1}, everywhere))
	f.Add(data)
	f.Add([]byte(`{"id":"x","asked":1,"clones":[{"id":1,"ip":"10.0.0.1","vcpus":1},{"id":1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tk, err := Parse(data)
		if err != nil {
			return
		}
		np := min(tk.Slots(), 1000)
		n := 0
		for _, r := range tk.Ranks(np) {
			n += len(r)
		}
		if n != np {
			t.Fatalf("%d of %d ranks have a place", n, np)
		}
	})
}
