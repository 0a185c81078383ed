package carrier

import (
	"context"
	"net"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
	"github.com/mpirun-sf/mpirun-sf/vmfork/trace"
)

// Host is a host that carries machines of a job, as the job's coordinator sees
// it: its own, which is a [*Carrier], or another, which is a [*Remote].
//
// Machines are named by their numbers on the private network. Generations are
// named by the coordinator, uniquely in the job; those that it has made known by
// Expect, Succeed or Checkpoint are its to Release. Who ends a machine, or
// releases a generation, ends what waits for it. Unreserve, Release and Withdraw
// do not wait for the host.
type Host interface {
	// Name is the host's name.
	Name() string
	// Equip settles what all machines of the job are.
	Equip(ctx context.Context, e Equipment) (Equipped, error)
	// Room is what the host has for clones now.
	Room(ctx context.Context) (allocator.Room, error)
	// Reserve reserves memory for clones, under an id of the caller's choice,
	// until Unreserve.
	Reserve(ctx context.Context, id string, d allocator.Demand) (Reserved, error)
	Unreserve(id string)
	// Place tells where machines are that other hosts carry: by number, the
	// number of the host. A machine that is nowhere any more has host -1.
	Place(ctx context.Context, hosts map[int]int) error

	// Expect begins a generation that another host is going to freeze.
	Expect(ctx context.Context, generation string) error
	// Prepare starts a hypervisor for a machine over a generation that may be
	// still to come, and returns when it waits there.
	Prepare(ctx context.Context, who ticket.Clone, generation string, disk int64) error
	// Start brings a machine that was prepared to life, as a copy of its
	// generation, which has come, with an identity of its own.
	Start(ctx context.Context, member int, id agent.Identity) (Started, error)
	// Open opens a stream to a machine's agent.
	Open(member int) (net.Conn, error)
	// Introduce tells a machine of others that are to come.
	Introduce(ctx context.Context, member int, others []network.Member) error
	// Succeed starts the process in which a machine goes on after its next
	// fork, over the generation that this will freeze.
	Succeed(ctx context.Context, member int, generation string) error
	// Freeze forks a machine: its generation that Succeed has announced is what
	// it was, and it goes on. After an error it goes on as before, and that
	// generation will never come.
	Freeze(ctx context.Context, member int) (Frozen, error)
	// End ends a machine, in whatever state it is, and returns when nothing is
	// left of it.
	End(member int)

	// Export offers a generation to other hosts, by their numbers.
	Export(ctx context.Context, generation string, to []int) (Exported, error)
	// Import brings a generation of another host, which was expected.
	Import(ctx context.Context, generation string, from Exported) error
	// Trace says which blocks of a generation's memory were read here, in their
	// order.
	Trace(ctx context.Context, generation string) (memtap.Trace, error)
	// Release ends the coordinator's use of a generation.
	Release(generation string)
	// Withdraw ends what an export offers: nobody reads these slices any more.
	Withdraw(layers []slice.ID)

	// Events are those of the host's trace since the last call, by its own clock,
	// and how far that is ahead of this one's.
	Events(ctx context.Context) (events []trace.Event, ahead time.Duration, err error)
	// Usage says what each machine takes.
	Usage(ctx context.Context) (map[int]Usage, error)
	// Counters says what the host has moved and used.
	Counters(ctx context.Context) (Counters, error)
}

// Events are what a host tells the coordinator of its own accord. Calls come
// from any goroutine.
type Events interface {
	// Notice is a line for the user.
	Notice(line string)
	// Detail is one for a user who wants to know how it is done.
	Detail(line string)
	// Progress is a step that takes time, and has begun.
	Progress(step string)
	// Gone is the end of a machine that nobody asked for.
	Gone(member int, reason error)
	// Severed is the end of the link to another host.
	Severed(host int, reason error)
	// Call is a connection to the VM fork API that a process in a machine has
	// opened. call names the process's call, if it may fork the machine.
	Call(member int, call string, conn net.Conn)
}

// Equipment is what machines are made with.
type Equipment struct {
	Hypervisor string // which kind ([hypervisor.Choose])
	Accel      string // one of that kind's accelerators, or "" to probe
	Shape      hypervisor.Shape
}

// Equipped is what came of it.
type Equipped struct {
	Hypervisor string // the kind that it is
	Accel      string // "kvm" or "tcg", of QEMU
	Reason     string // why not KVM; or why KVM, as asked, will crawl; "" if there is nothing to say
	// Version identifies the hypervisor: device states load only into the same.
	Version string
}

// Reserved is a reservation of memory.
type Reserved struct {
	VCPUs []int // of each clone that fits
	Cores int   // of the host
	Free  int64 // bytes that could be given to clones
	Each  int64 // bytes that a clone takes, overhead included
}

// Started says how long the steps of a start took, from the call, and the
// hypervisor's processor time until its vCPUs ran.
type Started struct{ Running, Ready, CPU time.Duration }

// Frozen says how a fork went for the machine that was forked.
type Frozen struct {
	Pause   time.Duration // for so long its processes stood still
	State   int           // bytes of device state
	Dirtied int64         // pages that it had written since its last generation
	Layers  []Layer       // of the generation
}

// Layer names a slice and the host that has all of it.
type Layer struct {
	ID     slice.ID
	Origin int
}

// Exported says how other hosts get a generation.
type Exported struct {
	Object slice.ID // under which its descriptor is published
	Origin int      // by which host
	Bytes  int      // of the descriptor
	Layers []Layer  // that the generation has now: slices may have been folded since it was frozen
}

// Counters are what a host has moved and used for the job so far.
type Counters struct {
	Memory memtap.Counters
	Disks  memtap.Counters       // of all machines together
	Copied int64                 // bytes of pages that machines had written when they were forked
	CPU    map[int]time.Duration // the hypervisors' processor time, by machine
	Reads  map[int]int64         // reads of their memory and disks that memtap answered
	Moved  mcdist.Counters       // between hosts
}

// Usage is what a machine takes of its host.
type Usage struct {
	Began   time.Time // when its agent was told who it is; zero before
	Touched int64     // bytes of its memory that are here
	Own     int64     // bytes of them that it has written
}
