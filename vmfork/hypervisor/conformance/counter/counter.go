// Package counter is the init of the conformance tests' guest. On its serial port
// it says who it is and counts, one line every 50 ms:
//
//	<a number drawn at boot> <counter> <whether its memory is as it was> <letters obeyed>
//
// and it does what the host says by letters: c looks whether memory is as it was
// that it has not touched since its boot; t takes [Taken] bytes of memory, all of
// them written, and f frees them; and it ends by o for off, r for restart, p for a
// kernel that panics.
//
// Where there are several processors, each line is written on the next.
//
// It is a package, so that a program of tests can be its own guest where there is no
// compiler.
package counter

import (
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/guestport"
)

// PortName is the serial port on which it counts.
const PortName = "mpirun-sf"

// Taken is how much memory it takes when it is told to.
const Taken = 48 << 20

// Main counts until the guest ends. It is for process 1.
func Main() {
	fmt.Printf("guest: %v\n", run())
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	list, err := os.ReadFile("/modules") // where all is built in, there is none
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := unix.InitModule(b, ""); err != nil && err != unix.ENODEV && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	device, err := guestport.Find(PortName)
	if err != nil {
		return err
	}
	port, err := guestport.Use(device)
	if err != nil {
		return err
	}
	var me [8]byte
	rand.Read(me[:])
	warm, cold := newPattern(me), newPattern(me)
	var obeyed atomic.Int64
	var damaged atomic.Bool
	go func() {
		var taken []byte
		for letter := make([]byte, 1); ; obeyed.Add(1) {
			if _, err := port.Read(letter); err != nil {
				return
			}
			switch letter[0] {
			case 'c':
				if !cold.whole() {
					damaged.Store(true)
				}
			case 't':
				if taken, err = take(); err != nil {
					fmt.Printf("guest: %v\n", err)
					return
				}
			case 'f':
				unix.Munmap(taken)
			case 'r':
				unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
			case 'p':
				os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
			default:
				unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
			}
		}
	}()
	processors := runtime.NumCPU()
	runtime.LockOSThread()
	for n := 0; ; n++ {
		if processors > 1 {
			var next unix.CPUSet
			next.Set(n % processors)
			if err := unix.SchedSetaffinity(0, &next); err != nil {
				return fmt.Errorf("count on processor %d: %w", n%processors, err)
			}
		}
		state := "whole"
		if damaged.Load() || !warm.whole() {
			state = "damaged"
		}
		if _, err := fmt.Fprintf(port, "%x %d %s %d\n", me, n, state, obeyed.Load()); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// take takes memory of the kernel's, past the run-time system, which would keep it.
func take() ([]byte, error) {
	taken, err := unix.Mmap(-1, 0, Taken, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("take memory: %w", err)
	}
	rand.Read(taken)
	return taken, nil
}

// A pattern is memory with a known content, of which every page has some.
type pattern struct {
	seed   [8]byte
	memory []byte
}

func newPattern(seed [8]byte) *pattern {
	p := &pattern{seed, make([]byte, 8<<20)}
	for i := 0; i < len(p.memory); i += 512 {
		p.memory[i] = p.at(i)
	}
	return p
}

func (p *pattern) at(i int) byte { return p.seed[i/512%8] ^ byte(i>>12) }

func (p *pattern) whole() bool {
	for i := 0; i < len(p.memory); i += 512 {
		if p.memory[i] != p.at(i) {
			return false
		}
	}
	return true
}
