package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where Linux has its one tree of control groups, version 2.
const cgroupRoot = "/sys/fs/cgroup"

// freezer is the control group of all processes that are not the agent's own,
// which stays outside. Freezing it makes them stand still together while the
// virtual machine is forked, whatever they do and whoever started them.
//
// Its files stay open: a freeze is part of a virtual machine's pause, and is
// two system calls where nothing resists.
type freezer struct {
	// Held for reading by who starts a process, and for writing from freeze to
	// thaw. Between vfork and exec a child in a frozen group would hold a thread
	// of the agent's that the Go runtime believes to be running, for ever on a
	// machine of one CPU.
	starting sync.RWMutex

	dir, state, events int // descriptors of the folder, cgroup.freeze and cgroup.events
}

// group is where processes start, and nil where the agent is not the guest's
// init. It is set before the first one.
var group *freezer

// newFreezer makes the group, which is not frozen.
func newFreezer() (*freezer, error) { return newFreezerAt(cgroupRoot) }

// newFreezerAt makes the group below a group's folder. If nothing is mounted
// there it mounts the tree of groups.
func newFreezerAt(root string) (*freezer, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return nil, fmt.Errorf("find the control groups: %s: %w (the guest's kernel needs CONFIG_CGROUPS)", root, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		if err := unix.Mount("cgroup2", root, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return nil, fmt.Errorf("mount cgroup2 at %s: %w (the guest's kernel needs CONFIG_CGROUPS)", root, err)
		}
	}
	dir := root + "/sf"
	if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("make the control group %s: %w", dir, err)
	}
	// Processes in other groups would not be frozen, and with one below the
	// kernel says that a group is frozen before its own processes are. So who
	// would make one (a container's runtime) is refused.
	if err := os.WriteFile(root+"/cgroup.max.descendants", []byte("1"), 0); err != nil {
		return nil, fmt.Errorf("allow one control group alone: %w", err)
	}
	f := &freezer{dir: -1, state: -1, events: -1}
	for _, o := range []struct {
		fd    *int
		path  string
		flags int
	}{
		{&f.dir, dir, unix.O_RDONLY | unix.O_DIRECTORY},
		{&f.state, dir + "/cgroup.freeze", unix.O_WRONLY},
		{&f.events, dir + "/cgroup.events", unix.O_RDONLY},
	} {
		fd, err := unix.Open(o.path, o.flags|unix.O_CLOEXEC, 0)
		if err != nil {
			f.close()
			return nil, fmt.Errorf("open %s: %w (Linux can freeze a control group since 5.2)", o.path, err)
		}
		*o.fd = fd
	}
	return f, nil
}

func (f *freezer) close() {
	for _, fd := range []int{f.dir, f.state, f.events} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// start has begin start a process with attr in the group, once that is not
// frozen. Without a group it only begins.
func (f *freezer) start(attr *syscall.SysProcAttr, begin func() error) error {
	if f == nil {
		return begin()
	}
	f.starting.RLock()
	defer f.starting.RUnlock()
	attr.UseCgroupFD, attr.CgroupFD = true, f.dir
	return begin()
}

// freezeLimit is how long a freeze may take where its caller sets no limit.
const freezeLimit = 5 * time.Second

// freeze makes all processes of the group stand still, and waits until they
// do. None is started until thaw. On an error they run, and it names who would
// not stop: one that waits for a device or for a server, as a rule.
func (f *freezer) freeze(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	if err := f.hold(ctx); err != nil {
		return err
	}
	_, err := unix.Pwrite(f.state, []byte("1"), 0)
	if err != nil {
		err = fmt.Errorf("freeze the guest's processes: %w", err)
	} else {
		err = f.await(ctx)
	}
	if err != nil {
		return errors.Join(err, f.thaw())
	}
	return nil
}

// hold waits for the processes that are being started, and keeps others from
// it.
func (f *freezer) hold(ctx context.Context) error {
	if f.starting.TryLock() {
		return nil
	}
	locked := make(chan struct{})
	go func() { f.starting.Lock(); close(locked) }()
	select {
	case <-locked:
		return nil
	case <-ctx.Done():
		go func() { <-locked; f.starting.Unlock() }()
		return fmt.Errorf("freeze the guest's processes: wait for one that is being started, or for an earlier freeze: %w", ctx.Err())
	}
}

// await returns once the group is frozen.
func (f *freezer) await(ctx context.Context) error {
	var buf [128]byte
	// The kernel tells at most once in 10 ms that the file has changed, and a
	// process may just have come or gone: so look in between, ever less often.
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 32*time.Millisecond) {
		n, err := unix.Pread(f.events, buf[:], 0)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("read cgroup.events: %w", err)
		}
		if bytes.Contains(buf[:max(n, 0)], []byte("frozen 1")) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("freeze the guest's processes: %w: waited for %s", ctx.Err(), f.running())
		}
		fds := []unix.PollFd{{Fd: int32(f.events), Events: unix.POLLPRI}}
		limit := unix.NsecToTimespec(int64(wait))
		if _, err := unix.Ppoll(fds, &limit, nil); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for cgroup.events: %w", err)
		}
	}
}

// thaw lets the processes run again. It follows a freeze, in whichever copy of
// the machine.
func (f *freezer) thaw() error {
	_, err := unix.Pwrite(f.state, []byte("0"), 0)
	f.starting.Unlock()
	if err != nil {
		return fmt.Errorf("thaw the guest's processes: %w", err)
	}
	return nil
}

// maxNamed bounds how many processes an error names.
const maxNamed = 8

// running names the threads of the group that are not frozen, with state and
// place in the kernel: for an error, as it is slow.
func (f *freezer) running() string {
	threads, _ := os.ReadFile("/proc/self/fd/" + strconv.Itoa(f.dir) + "/cgroup.threads")
	var named []string
	more := 0
	for tid := range strings.FieldsSeq(string(threads)) {
		if who := awake(tid); who == "" {
			continue
		} else if len(named) == maxNamed {
			more++
		} else {
			named = append(named, who)
		}
	}
	if more > 0 {
		named = append(named, fmt.Sprintf("and %d more", more))
	}
	if len(named) == 0 {
		return "processes that have ended meanwhile"
	}
	return strings.Join(named, ", ")
}

// awake describes a thread, or is empty if it is frozen, stopped or gone.
func awake(tid string) string {
	stat, err := os.ReadFile("/proc/" + tid + "/stat")
	if err != nil {
		return ""
	}
	// proc(5): tid (name) state ..., where the name may hold anything.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open || end+2 >= len(stat) {
		return ""
	}
	// Freezing wakes who sleeps, so a sleeper that can be woken is frozen.
	if state := stat[end+2]; state == 'R' || state == 'D' {
		who := fmt.Sprintf("pid %s (%s, state %c", tid, stat[open+1:end], state)
		at, _ := os.ReadFile("/proc/" + tid + "/wchan")
		if string(at) == "kernel_clone" {
			return "" // it waits for a child of vfork(2), which counts as frozen
		}
		if len(at) > 0 && string(at) != "0" {
			who += ", in " + string(at)
		}
		return who + ")"
	}
	return ""
}
