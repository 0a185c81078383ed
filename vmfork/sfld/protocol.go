package sfld

import (
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// Options are what a daemon must know from the start.
type Options struct {
	Job        string `json:"job"`        // the job's id, unique on this machine
	Cache      string `json:"cache"`      // the folder of guest images and checkpoints
	Limit      int64  `json:"limit"`      // its size limit in bytes, 0 for the default
	Window     int    `json:"window"`     // memtap's, bytes, 0 for the default
	Accel      string `json:"accel"`      // one of the hypervisor's, or "" to probe
	Hypervisor string `json:"hypervisor"` // which kind ([hypervisor.Choose])
	UID        int    `json:"uid"`        // the user that the job is for
	GID        int    `json:"gid"`
	Groups     []int  `json:"groups"`
	Traced     bool   `json:"traced"` // what takes how long is recorded

	// What mpirun-sf ps tells of the job.
	Version string   `json:"version"`
	User    string   `json:"user"`
	Command []string `json:"command"`
	Ranks   int      `json:"ranks"` // 0 for a virtual machine
}

// PrepareArgs says what the clones will be copies of.
type PrepareArgs struct {
	Program     string // path on this machine; its libraries go into the guest
	LibraryPath string // LD_LIBRARY_PATH
	Disk        string // a user's own disk image instead, "" for none
	Guest       Guest  // what else is in the guest
	User        string // the user's name and home folder in the guest
	Home        string
	VCPUs       int
	Memory      int64 // bytes
	Expect      int   // start this many hypervisor processes ahead
	ColdBoot    bool  // for the benchmark: boot, tell how long it took, and keep nothing
}

// Guest is what a guest has in it for a user, beside a program's libraries.
type Guest struct {
	Tools bool     // a shell, and what is used from it
	With  []string // programs, files and folders of this machine
	Needs []string // what a script or an interpreter was seen to need (guest.Command)
	Hooks []string // executables that run in each clone before its first process goes on
	Free  int64    // bytes to leave free on its disk, 0 for the default

	// Shared are the folders that it will mount: nothing of them is in it for the
	// sake of Needs.
	Shared []string
}

// VMArgs describes the first VM of a job.
type VMArgs struct {
	VCPUs int // online of those that it was prepared with
	Limit time.Duration
}

// VMStarted is the VM.
type VMStarted struct {
	VM    ticket.Clone // with the id 0
	Ready time.Duration
}

// Prepared says what Prepare did.
type Prepared struct {
	Image       string        // key of the guest image
	Built       bool          // it was built now
	ImageBytes  int64         // in use in its root
	BuildTime   time.Duration // 0 if it was found
	Booted      bool          // a guest was booted now
	BootTime    time.Duration // boot and checkpoint, 0 if it was found
	Accel       string        // "kvm" or "tcg"
	AccelReason string        // why not KVM, "" if KVM
	UCX         bool          // the program needs the UCX progress preload
	StateBytes  int           // size of the device state
}

// RequestArgs asks for a ticket.
type RequestArgs struct {
	Clones int
	VCPUs  int
	Memory int64
	Strict bool
}

// Granted is a ticket and the numbers behind it.
type Granted struct {
	Ticket ticket.Ticket
	Hosts  int   // that carry clones
	Cores  int   // of all of them
	Slots  int   // virtual CPUs that they may carry, 0 if one of them has no such limit
	Free   int64 // bytes that could be given to clones
	Each   int64 // bytes that a clone takes
}

// CloneArgs asks for the fork.
type CloneArgs struct {
	Ticket ticket.Ticket
	Limit  time.Duration // until every clone is ready
}

// Cloned says how the fork went, by clone id. Times are from the call.
type Cloned struct {
	Running map[int]time.Duration // until its vCPUs ran
	Ready   map[int]time.Duration // until its identity was set and its link up
	CPU     map[int]time.Duration // its hypervisor's processor time until its vCPUs ran
}

// after counts an earlier step in.
func (c *Cloned) after(d time.Duration) {
	for _, times := range []map[int]time.Duration{c.Running, c.Ready} {
		for id := range times {
			times[id] += d
		}
	}
}

// longest is the last of them.
func longest(times map[int]time.Duration) (d time.Duration) {
	for _, t := range times {
		d = max(d, t)
	}
	return d
}

// ShareArgs asks for a folder to be served to the clones.
type ShareArgs struct {
	Folder   string
	Target   string // where it appears, usually Folder
	ReadOnly bool
	Survives bool // what is open there goes on in clones of who mounts it
}

// Shared is what a clone needs to mount it.
type Shared struct{ Mounting share.Mounting }

// StageArgs asks for files to be served, for programs outside of every shared
// folder.
type StageArgs struct{ Files []string }

// Staged is what a clone needs to mount the folder with copies of the files, and
// their paths there, in order.
type Staged struct {
	Mounting share.Mounting
	Paths    []string
}

// stagedFolder is where staged files appear in the clones, each call's in a
// folder of its own.
const stagedFolder = "/run/mpirun-sf/staged"

// Counters are what the job has moved and used so far, by host.
type Counters struct{ Hosts []HostCounters }

// HostCounters are one host's.
type HostCounters struct {
	Name string
	carrier.Counters
}

// Total is the sum of all hosts.
func (c Counters) Total() (t carrier.Counters) {
	for _, h := range c.Hosts {
		t.Add(h.Counters)
	}
	return t
}

// Notice is a line of the daemon's to the launcher. Exactly one field is set.
type Notice struct {
	Progress string `json:"progress,omitempty"` // a step that takes time has begun
	Line     string `json:"line,omitempty"`     // the user should know this
	Detail   string `json:"detail,omitempty"`   // one who wants to know how it is done, this
	Gone     string `json:"gone,omitempty"`     // the machine of this name is gone,
	Reason   string `json:"reason,omitempty"`   // for this reason
}
