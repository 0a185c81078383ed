package allocator

import (
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
)

func TestDivideOverHosts(t *testing.T) {
	const each = 100 << 20
	flat := func(n, vcpus int) Demand { return Demand{Clones: n, VCPUs: vcpus, Memory: each - Overhead} }
	strict := func(d Demand) Demand { d.Strict = true; return d }
	hierarchical := func(n, most int) Demand {
		return Demand{Clones: n, Hierarchical: true, MaxVCPUs: most, Memory: each - Overhead}
	}
	slots := func(slots ...int) (rooms []Room) {
		for _, n := range slots {
			rooms = append(rooms, Room{Slots: n, Free: -1})
		}
		return rooms
	}
	ones := func(n int) (vcpus []int) {
		for range n {
			vcpus = append(vcpus, 1)
		}
		return vcpus
	}
	for _, test := range []struct {
		name   string
		demand Demand
		rooms  []Room
		want   [][]int
	}{
		{"in order, by slots", flat(5, 1), slots(2, 4, 2), [][]int{ones(2), ones(3), nil}},
		{"fewer slots than asked", flat(9, 1), slots(2, 4), [][]int{ones(2), ones(4)}},
		{"a clone of two takes two slots", flat(4, 2), slots(3, 4, 1, 2), [][]int{{2}, {2, 2}, nil, {2}}},
		{"slots that earlier tickets took", flat(4, 1), []Room{{Slots: 4, Used: 3, Free: -1}, {Slots: 4, Free: -1}}, [][]int{ones(1), ones(3)}},
		{"more used than there are slots", flat(1, 1), []Room{{Slots: 1, Used: 3, Free: -1}}, [][]int{nil}},
		{"memory for three", flat(9, 1), []Room{{Slots: 4, Free: 3 * each}, {Slots: 4, Free: -1}}, [][]int{ones(3), ones(4)}},
		{"no memory", flat(2, 1), []Room{{Slots: 4, Free: each - 1}, {Free: 0}}, [][]int{nil, nil}},
		{"without slots, evenly", flat(10, 1), slots(0, 0, 0, 0), [][]int{ones(3), ones(3), ones(2), ones(2)}},
		{"without slots, one each first", flat(2, 1), slots(0, 0, 0), [][]int{ones(1), ones(1), nil}},
		{"without slots, by cores", flat(12, 1), []Room{{CPUs: 8, Free: -1}, {CPUs: 4, Free: -1}}, [][]int{ones(8), ones(4)}},
		{"without slots, what fits", flat(9, 1), []Room{{Free: 2 * each}, {Free: 5 * each}}, [][]int{ones(2), ones(5)}},
		{"without slots, one took earlier ones", flat(2, 1), []Room{{Used: 2, Free: -1}, {Free: -1}}, [][]int{nil, ones(2)}},
		{"some have slots", flat(6, 1), slots(4, 0, 4), [][]int{ones(4), ones(1), ones(1)}},
		{"some have slots, and not enough", flat(12, 1), slots(4, 0, 4), [][]int{ones(4), ones(4), ones(4)}},
		{"cores are soft", flat(6, 1), []Room{{Slots: 6, CPUs: 2, Free: -1}}, [][]int{ones(6)}},
		{"cores are hard", strict(flat(6, 1)), []Room{{Slots: 6, CPUs: 2, Free: -1}, {CPUs: 4, Used: 1, Free: -1}}, [][]int{ones(2), ones(3)}},
		{"processors", hierarchical(8, 4), slots(4, 4), [][]int{{4}, {4}}},
		{"processors by slots", hierarchical(9, 4), slots(6, 6), [][]int{{3, 3}, {3}}},
		{"processors on as few hosts", hierarchical(8, 4), slots(0, 0, 0, 0), [][]int{{4}, {4}, nil, nil}},
		{"processors in even lots", hierarchical(5, 4), slots(0, 0), [][]int{{3}, {2}}},
		{"processors by memory", hierarchical(20, 4), []Room{{Free: 2 * each}, {Free: 1 * each}}, [][]int{{4, 4}, {4}}},
		{"processors by cores", strict(hierarchical(20, 4)), []Room{{CPUs: 6, Free: -1}, {CPUs: 2, Free: -1}}, [][]int{{3, 3}, {2}}},
		{"all the processors there are", hierarchical(math.MaxInt, math.MaxInt), slots(3, 4), [][]int{{3}, {4}}},
		{"no hosts", flat(3, 1), nil, [][]int{}},
		{"no demand", flat(0, 1), slots(1), [][]int{nil}},
	} {
		if got := Divide(test.demand, test.rooms); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// What is promised of any division: limits hold, nothing that fits is left
// out, and each host's daemon comes to the same clones.
func TestDivideOverHostsKeepsItsPromises(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		d := Demand{
			Clones: 1 + random.IntN(40), VCPUs: 1 + random.IntN(4), Memory: 64<<20 - Overhead,
			Strict: random.IntN(3) == 0, Hierarchical: random.IntN(2) == 0, MaxVCPUs: 1 + random.IntN(5),
		}
		rooms := make([]Room, random.IntN(6))
		for i := range rooms {
			rooms[i] = Room{
				Slots: random.IntN(3) * random.IntN(8), Used: random.IntN(2) * random.IntN(4),
				CPUs: random.IntN(2) * random.IntN(9), Free: int64(random.IntN(400)-50) << 20,
			}
		}
		shares := Divide(d, rooms)
		if len(shares) != len(rooms) {
			t.Fatalf("%+v %+v: %v", d, rooms, shares)
		}
		units, can := 0, 0
		for i, share := range shares {
			r, sum := rooms[i], 0
			for _, vcpus := range share {
				sum += vcpus
				if d.Hierarchical && (vcpus < 1 || vcpus > d.MaxVCPUs) || !d.Hierarchical && vcpus != d.VCPUs {
					t.Fatalf("%+v %+v: a clone of %d in %v", d, rooms, vcpus, shares)
				}
			}
			if len(share) > 0 {
				if r.Slots > 0 && sum+r.Used > r.Slots ||
					d.Strict && r.CPUs > 0 && sum+r.Used > r.CPUs ||
					r.Free >= 0 && int64(len(share))*(d.Memory+Overhead) > r.Free {
					t.Fatalf("%+v %+v: host %d has too many of %v", d, rooms, i, shares)
				}
				on := d.On(share)
				if got := on.divide(int64(len(share)), sum); !reflect.DeepEqual(got, share) {
					t.Fatalf("%+v %+v: host %d makes %v of its share %v", d, rooms, i, got, share)
				}
				units += on.Clones
			}
			can += d.units(r)
		}
		if want := min(d.Clones, can); units != want {
			t.Fatalf("%+v %+v: %v are %d, and %d fit", d, rooms, shares, units, want)
		}
	}
}
