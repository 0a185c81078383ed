package allocator

import "math"

// maxUnits bounds the work of a division: more clones than a job's network has
// addresses for.
const maxUnits = 1 << 16

// Room is what a host has for the clones of a job.
type Room struct {
	Slots int   // processors (ranks) that the job may have there in all, 0: no such limit
	Used  int   // of them, those that earlier tickets of the job have there
	CPUs  int   // cores that the job may use, 0: not known; a limit only where the demand is strict
	Free  int64 // bytes that clones can have now, their overhead included; negative: not known
}

// Room is a host's room as far as its resource manager told, before the job has
// anything there.
func (h Host) Room() Room {
	r := Room{Slots: h.Slots, CPUs: h.CPUs, Free: h.Memory}
	if h.Memory == 0 {
		r.Free = -1
	}
	return r
}

// Divide places the clones of a demand on hosts: the result says for each of
// rooms how many virtual CPUs each of its clones gets. What does not fit is not
// there: a ticket for fewer clones than asked is no error (section 2.1).
//
// Hosts are filled in their order, each up to its slots, as MPICH's hydra does,
// so that neighbouring ranks share hosts. A clone of v virtual CPUs takes v
// slots. A host without slots counts as if it had them for one clone, again as
// with hydra. Where that is not enough for the demand, those hosts take more:
// clone by clone, each goes to the one with the fewest virtual CPUs for each of
// its cores (an unknown number of cores counts as one), and among equals to the
// first. Memory limits every host; cores only where the demand is strict.
//
// A hierarchical demand (section 2.2) is for processors, so hosts take as many
// processors as they have slots, and each host then has as few clones for them
// as possible. Hosts without slots take them in lots of the size that all
// clones would have on one host of unlimited size, so that fewer hosts are used
// rather than smaller clones.
//
// A demand that is none has no clones, and none has more than 65536 clones or
// processors.
func Divide(d Demand, rooms []Room) [][]int {
	shares := make([][]int, len(rooms))
	if d.check() != nil {
		return shares
	}
	d.Clones = min(d.Clones, maxUnits)
	lot := d.lot()
	want := d.Clones // processors or clones: units
	most := make([]int, len(rooms))
	units := make([]int, len(rooms))
	take := func(host, n int) {
		n = min(n, want, most[host]-units[host])
		units[host] += n
		want -= n
	}
	for i, r := range rooms {
		most[i] = d.units(r)
		if r.Slots > 0 {
			take(i, most[i])
		} else if r.Used == 0 {
			take(i, lot)
		}
	}
	for want > 0 {
		least := -1
		for i, r := range rooms {
			if r.Slots == 0 && units[i] < most[i] && (least < 0 || d.load(r, units[i]) < d.load(rooms[least], units[least])) {
				least = i
			}
		}
		if least < 0 {
			break
		}
		take(least, lot)
	}
	for i, r := range rooms {
		if units[i] > 0 {
			shares[i] = d.of(units[i]).divide(d.memoryFor(r), math.MaxInt)
		}
	}
	return shares
}

// On is the demand that one host is asked for: for its share, as Divide made
// it. A [Local] there with room enough divides it into the same clones.
func (d Demand) On(share []int) Demand {
	if !d.Hierarchical {
		return d.of(len(share))
	}
	processors := 0
	for _, vcpus := range share {
		processors += vcpus
	}
	return d.of(processors)
}

func (d Demand) of(units int) Demand {
	d.Clones = units
	return d
}

// lot is how many units go to a host without slots at once: one clone.
func (d Demand) lot() int {
	if !d.Hierarchical {
		return 1
	}
	clones := 1 + (d.Clones-1)/d.MaxVCPUs
	return 1 + (d.Clones-1)/clones
}

// processors is how many of them so many units are.
func (d Demand) processors(units int) int {
	if d.Hierarchical {
		return units
	}
	return units * d.VCPUs
}

// units is how many clones, or processors where the demand is hierarchical, a
// host has room for.
func (d Demand) units(r Room) int {
	processors := math.MaxInt
	if r.Slots > 0 {
		processors = max(0, r.Slots-r.Used)
	}
	if d.Strict && r.CPUs > 0 {
		processors = min(processors, max(0, r.CPUs-r.Used))
	}
	clones := d.memoryFor(r)
	if !d.Hierarchical {
		return int(min(clones, int64(processors/d.VCPUs), int64(d.Clones)))
	}
	if clones < int64(1+(d.Clones-1)/d.MaxVCPUs) {
		processors = min(processors, int(clones)*d.MaxVCPUs)
	}
	return min(processors, d.Clones)
}

// memoryFor is for how many clones there is memory.
func (d Demand) memoryFor(r Room) int64 {
	if r.Free < 0 {
		return math.MaxInt64
	}
	return r.Free / (d.Memory + Overhead)
}

// load is how many virtual CPUs there are for each core, with so many units.
func (d Demand) load(r Room, units int) float64 {
	return float64(r.Used+d.processors(units)) / float64(max(1, r.CPUs))
}
