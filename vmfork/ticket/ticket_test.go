package ticket

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

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
			got := New("t", plan, 9, c.clones, c.vcpus, "here").Ranks(c.np)
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestTicketSurvivesJSON(t *testing.T) {
	want := New("t", network.NewPlan("a job"), 4, 3, 2, "here")
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(data)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	data, _ := json.Marshal(New("t", network.NewPlan("a job"), 4, 3, 2, "here"))
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
