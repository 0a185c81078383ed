package allocator

import (
	"fmt"
	"os"
	"sync/atomic"
)

// Overhead is what a clone's hypervisor takes besides the clone's RAM, in
// bytes: QEMU 7.2 without a guest has some 30 MB of its own.
const Overhead = 40 << 20

// maxMemory, in bytes, is far beyond any machine, and far from where sums
// overflow.
const maxMemory = 1 << 50

// Demand is what a job asks for.
type Demand struct {
	Clones int   // n: clones, or processors where the demand is hierarchical
	VCPUs  int   // of each clone; of no meaning where the demand is hierarchical
	Memory int64 // of each clone, bytes, however many virtual CPUs it has
	Strict bool  // cores are a hard limit too, for all that the job has reserved

	// Hierarchical asks for processors: as few clones as possible, of at most
	// MaxVCPUs each, which is how many virtual CPUs the parent's machine has.
	// The processes of the caller are to follow, one for each (section 2.2).
	Hierarchical bool
	MaxVCPUs     int
}

// Grant is what it gets: m ≤ n clones, and the numbers behind that.
type Grant struct {
	Clones int
	VCPUs  []int // of each clone; their sum is at most n where the demand was hierarchical
	Cores  int   // of this machine
	Free   int64 // bytes that could be given to clones
	Each   int64 // bytes that a clone takes, overhead included

	file atomic.Pointer[os.File]
}

func (d Demand) check() error {
	each := d.VCPUs
	if d.Hierarchical {
		each = d.MaxVCPUs
	}
	if d.Clones < 1 || each < 1 || d.Memory <= 0 || d.Memory > maxMemory {
		what := "clones"
		if d.Hierarchical {
			what = "processors in clones"
		}
		return fmt.Errorf("%d %s of %d virtual CPUs and %d bytes is not a demand", d.Clones, what, each, d.Memory)
	}
	return nil
}

// divide says how many virtual CPUs each clone gets, where there may be so many
// clones for their memory, and so many virtual CPUs in all for the cores.
func (d Demand) divide(clones int64, cores int) []int {
	if cores <= 0 || clones <= 0 {
		return nil
	}
	if !d.Hierarchical {
		vcpus := make([]int, min(int64(d.Clones), clones, int64(cores/d.VCPUs)))
		for i := range vcpus {
			vcpus[i] = d.VCPUs
		}
		return vcpus
	}
	// With fewer clones than wanted, all of them are as large as may be; the
	// others are evenly large, so that none has much less to do than the rest.
	processors := min(d.Clones, cores)
	wanted := 1 + (processors-1)/d.MaxVCPUs
	if clones < int64(wanted) {
		wanted = int(clones)
		processors = wanted * d.MaxVCPUs
	}
	vcpus := make([]int, wanted)
	for i := range vcpus {
		vcpus[i] = processors / wanted
		if i < processors%wanted {
			vcpus[i]++
		}
	}
	return vcpus
}

// Release gives the memory back. It may be called more than once, and of a
// grant of nothing.
func (g *Grant) Release() {
	if f := g.file.Swap(nil); f != nil {
		os.Remove(f.Name())
		f.Close()
	}
}
