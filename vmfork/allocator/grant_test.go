package allocator

import (
	"math"
	"slices"
	"testing"
)

func TestDivide(t *testing.T) {
	const much = math.MaxInt
	flat := func(n, vcpus int) Demand { return Demand{Clones: n, VCPUs: vcpus} }
	hierarchical := func(n, most int) Demand { return Demand{Clones: n, Hierarchical: true, MaxVCPUs: most} }
	for _, test := range []struct {
		name   string
		demand Demand
		clones int64
		cores  int
		want   []int
	}{
		{"each as asked", flat(3, 2), much, much, []int{2, 2, 2}},
		{"memory for two", flat(3, 2), 2, much, []int{2, 2}},
		{"cores for one", flat(3, 2), much, 3, []int{2}},
		{"cores for none", flat(3, 2), much, 1, nil},
		{"cores overdrawn", flat(3, 1), much, -2, nil},
		{"no memory", flat(3, 1), 0, much, nil},
		{"as few as possible", hierarchical(8, 4), much, much, []int{4, 4}},
		{"one is enough", hierarchical(3, 4), much, much, []int{3}},
		{"evenly", hierarchical(9, 4), much, much, []int{3, 3, 3}},
		{"nearly evenly", hierarchical(5, 4), much, much, []int{3, 2}},
		{"virtual machines with one", hierarchical(3, 1), much, much, []int{1, 1, 1}},
		{"memory for two of three", hierarchical(9, 4), 2, much, []int{4, 4}},
		{"memory for just those", hierarchical(9, 4), 3, much, []int{3, 3, 3}},
		{"cores for five of nine", hierarchical(9, 4), much, 5, []int{3, 2}},
		{"cores and memory", hierarchical(9, 4), 1, 5, []int{4}},
		{"cores taken", hierarchical(9, 4), much, 0, nil},
		{"all the processors there are", hierarchical(math.MaxInt, math.MaxInt), much, much, []int{math.MaxInt}},
	} {
		if got := test.demand.divide(test.clones, test.cores); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestDivideKeepsItsPromises(t *testing.T) {
	for n := 1; n <= 20; n++ {
		for most := 1; most <= 6; most++ {
			for clones := int64(0); clones <= 21; clones++ {
				for cores := 0; cores <= 21; cores++ {
					got := Demand{Clones: n, Hierarchical: true, MaxVCPUs: most}.divide(clones, cores)
					sum := 0
					for _, vcpus := range got {
						if vcpus < 1 || vcpus > most {
							t.Fatalf("%d processors, at most %d: a clone of %d", n, most, vcpus)
						}
						sum += vcpus
					}
					if want := min(n, cores, int(clones)*most); sum != want {
						t.Fatalf("%d processors, at most %d, %d clones, %d cores: %d processors, not %d", n, most, clones, cores, sum, want)
					}
					if fewest := (sum + most - 1) / most; len(got) != fewest {
						t.Fatalf("%d processors, at most %d: %d clones, where %d would do", n, most, len(got), fewest)
					}
				}
			}
		}
	}
}

func TestDemandsThatAreNone(t *testing.T) {
	l := Local{Dir: t.TempDir()}
	for _, d := range []Demand{
		{},
		{Clones: 0, VCPUs: 1, Memory: 1},
		{Clones: 1, VCPUs: 0, Memory: 1},
		{Clones: 1, VCPUs: 1, Memory: 0},
		{Clones: 1, VCPUs: 1, Memory: math.MaxInt64},
		{Clones: 1, VCPUs: 1, Memory: 1, Hierarchical: true},
	} {
		if g, err := l.Reserve("job", d); err == nil {
			t.Errorf("%+v was granted %d clones", d, g.Clones)
		}
	}
	for _, job := range []string{"", "..", "a/b", ".hidden"} {
		if _, err := l.Reserve(job, Demand{Clones: 1, VCPUs: 1, Memory: 1}); err == nil {
			t.Errorf("a job named %q got memory", job)
		}
	}
}
