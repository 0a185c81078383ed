package pmi

import (
	"slices"
	"strings"
	"testing"
)

func TestMapping(t *testing.T) {
	for _, test := range []struct {
		ranks []int
		want  string
	}{
		{nil, "(vector)"},
		{[]int{4}, "(vector,(0,1,4))"},
		{[]int{1, 1, 1, 1}, "(vector,(0,4,1))"},
		{[]int{2, 2, 1}, "(vector,(0,2,2),(2,1,1))"},
		{[]int{1, 2, 2, 1}, "(vector,(0,1,1),(1,2,2),(3,1,1))"},
		{[]int{2, 0, 2, -1, 1}, "(vector,(0,2,2),(2,1,1))"},
	} {
		if got := Mapping(test.ranks); got != test.want {
			t.Errorf("Mapping(%v) = %s, want %s", test.ranks, got, test.want)
		}
	}
}

func TestEnviron(t *testing.T) {
	want := []string{"PMI_FD=3", "PMI_RANK=5", "PMI_SIZE=8", "MPI_LOCALRANKID=1", "MPI_LOCALNRANKS=4"}
	if got := Environ(5, 8, 1, 4, 3); !slices.Equal(got, want) {
		t.Errorf("Environ = %q, want %q", got, want)
	}
}

func TestGroupValidate(t *testing.T) {
	good := Group{Size: 4, KVSName: "kvs_1", Mapping: "(vector,(0,4,1))"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Group){
		"ranks":               func(g *Group) { g.Size = 0 },
		"KVS name":            func(g *Group) { g.KVSName = "two words" },
		"PMI_process_mapping": func(g *Group) { g.Mapping = Mapping(slices.Repeat([]int{1, 2}, 100)) },
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
	name, key, value := strings.Repeat("n", MaxKVSName), strings.Repeat("k", MaxKey), strings.Repeat("v", MaxValue)
	for _, line := range []string{
		"cmd=put kvsname=" + name + " key=" + key + " value=" + value + "\n",
		"cmd=get_result rc=0 msg=success value=" + value + "\n",
	} {
		if len(line) > clientLine {
			t.Errorf("%.30s... has %d bytes, the client's buffer takes %d", line, len(line), clientLine)
		}
	}
}

func TestFormatRanks(t *testing.T) {
	if got := formatRanks([]int{0, 1, 2, 5, 7, 8}); got != "0-2,5,7-8" {
		t.Error(got)
	}
}
