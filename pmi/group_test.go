package pmi

import (
	"slices"
	"strings"
	"testing"
)

func TestEnviron(t *testing.T) {
	g := Group{Size: 8, KVSName: "k"}
	want := []string{"PMI_FD=3", "PMI_RANK=5", "PMI_SIZE=8", "MPI_LOCALRANKID=1", "MPI_LOCALNRANKS=2"}
	if got, err := NewProxy(g, nil, []int{2, 5}).Environ(5, 3); err != nil || !slices.Equal(got, want) {
		t.Errorf("Environ = %q, %v, want %q", got, err, want)
	}
	g.Spawner = "parent"
	want = append([]string{"PMI_PORT=127.0.0.1:99", "PMI_ID=77"}, append(want[1:], "PMI_SPAWNED=1")...)
	if got, err := NewProxy(g, nil, []int{2, 5}).PortEnviron(5, "127.0.0.1:99", 77); err != nil || !slices.Equal(got, want) {
		t.Errorf("PortEnviron = %q, %v, want %q", got, err, want)
	}
	if _, err := NewProxy(g, nil, []int{2, 5}).Environ(3, 3); err == nil {
		t.Error("a rank of another clone has an environment")
	}
}

func TestGroupValidate(t *testing.T) {
	good := Group{
		Size: 4, KVSName: "kvs_1", Mapping: "(vector,(0,4,1))", Apps: []int{1, 0, 3}, Preput: []Pair{{"k", "a b"}}, Spawner: "kvs_0",
	}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Group){
		"of 0 ranks":          func(g *Group) { g.Size = 0 },
		"has 5 ranks":         func(g *Group) { g.Apps = []int{5} },
		"have 3 ranks":        func(g *Group) { g.Apps = []int{1, 2} },
		"of the spawner":      func(g *Group) { g.Spawner = "two words" },
		"preput of key":       func(g *Group) { g.Preput = []Pair{{"two words", "v"}} },
		"line end":            func(g *Group) { g.Preput = []Pair{{"k", "a\nb"}} },
		"KVS name":            func(g *Group) { g.KVSName = "two words" },
		"PMI_process_mapping": func(g *Group) { g.Mapping = "(vector" + strings.Repeat(",(0,1,1)", 200) + ")" },
	} {
		g := good
		spoil(&g)
		if err := g.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("spoiled %s: error %v", name, err)
		}
	}
}

// The longest lines must fit MPICH's buffer: this is what MaxValue is for.
func TestLongestLinesFitTheClient(t *testing.T) {
	name := strings.Repeat("n", MaxKVSName) + "_" + spaceName(MaxSize-1, maxSpaces-1)
	key, value := strings.Repeat("k", MaxKey), strings.Repeat("v", MaxValue)
	for _, line := range []string{
		"cmd=put kvsname=" + name + " key=" + key + " value=" + value + "\n",
		"cmd=get_result rc=0 msg=success value=" + value + "\n",
	} {
		if len(line) > clientLine {
			t.Errorf("%.30s... has %d bytes, the client's buffer takes %d", line, len(line), clientLine)
		}
	}
}

func TestAppNum(t *testing.T) {
	g := Group{Size: 4, Apps: []int{1, 0, 3}}
	for rank, want := range []int{0, 2, 2, 2} {
		if got := g.appNum(rank); got != want {
			t.Errorf("rank %d runs program %d, want %d", rank, got, want)
		}
	}
	if got := (Group{Size: 2}).appNum(1); got != 0 {
		t.Errorf("a group of one program runs number %d", got)
	}
}

func TestFormatRanks(t *testing.T) {
	if got := formatRanks([]int{0, 1, 2, 5, 7, 8}); got != "0-2,5,7-8" {
		t.Error(got)
	}
}
