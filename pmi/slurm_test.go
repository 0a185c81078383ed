package pmi

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// These tests run real clients of PMI-2: programs that are linked with Slurm's client library.

func compilePMI2(t *testing.T) string {
	t.Helper()
	return build(t, "libpmi2-0-dev", "cc", "pmi2.c", "-lpmi2")
}

func TestSlurmClient(t *testing.T) {
	program := compilePMI2(t)
	for _, port := range []bool{false, true} {
		t.Run(fmt.Sprintf("port=%v", port), func(t *testing.T) {
			m := newReal(t, NewNames(), Group{Size: 4, KVSName: "kvs_1_0", UniverseSize: 9, Mapping: "(vector,(0,2,2))"})
			m.port = port
			m.start(2, func(int) []string { return []string{program, "all"} })
			var want []string
			for r := range 4 {
				want = append(want, fmt.Sprintf("rank %d: mapping (vector,(0,2,2))", r), fmt.Sprintf("rank %d: universe 9", r),
					fmt.Sprintf("rank %d: published tag#0$port#1$", r))
				if r%2 == 0 {
					want = append(want, fmt.Sprintf("rank %d: shared-%d is here", r, r/2))
				}
			}
			slices.Sort(want)
			if got := m.wait(); !slices.Equal(got, want) {
				t.Errorf("printed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func TestSlurmClientSpawns(t *testing.T) {
	program := compilePMI2(t)
	m := newReal(t, NewNames(), Group{Size: 1, KVSName: "kvs_1_0"})
	m.start(1, func(int) []string { return []string{program, "spawn"} })
	var request *SpawnRequest
	select {
	case request = <-m.spawns:
	case <-m.ctx.Done():
		t.Fatalf("nothing was spawned: %s", m.out[0])
	}
	if wdir, _ := request.Apps[0].Get("wdir"); wdir != "/" || len(request.Apps[1].Info) != 0 {
		t.Errorf("info %q and %q", request.Apps[0].Info, request.Apps[1].Info)
	}
	children := newReal(t, m.names, request.Group("kvs_1_1", nil))
	children.start(2, func(rank int) []string { return request.Apps[children.group.appNum(rank)].Argv })
	request.Answer("kvs_1_1", nil, nil)

	if got, want := m.wait(), []string{"rank 0: spawned kvs_1_1"}; !slices.Equal(got, want) {
		t.Errorf("the parent printed %q, want %q", got, want)
	}
	want := []string{
		"child 0 of 3, program 0 of kvs_1_1: parent tag#0$, 3 arguments [a b;c] []",
		"child 1 of 3, program 0 of kvs_1_1: parent tag#0$, 3 arguments [a b;c] []",
		"child 2 of 3, program 1 of kvs_1_1: parent tag#0$, 1 arguments",
	}
	if got := children.wait(); !slices.Equal(got, want) {
		t.Errorf("the children printed %q, want %q", got, want)
	}
}

func TestSlurmClientAborts(t *testing.T) {
	m := newReal(t, NewNames(), Group{Size: 2, KVSName: "kvs_1_0"})
	program := compilePMI2(t)
	m.start(1, func(int) []string { return []string{program, "abort"} })
	select {
	case got := <-m.aborts:
		if got != "rank 1 aborts with 1" {
			t.Error(got)
		}
	case <-m.ctx.Done():
		t.Fatalf("no abort came: %s", m.out[1])
	}
	m.kill()
}
