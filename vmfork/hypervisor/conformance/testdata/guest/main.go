// Command guest is the init of the conformance tests' guest. On its serial port
// it says who it is and counts, one line every 50 ms:
//
//	<a number drawn at boot> <counter> <whether its memory is as it was>
//
// and it ends as the host says by one letter: o for off, r for restart, p for a
// kernel that panics.
package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Println("to be run as init of a guest")
		return
	}
	if err := run(); err != nil {
		fmt.Printf("guest: %v\n", err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	list, err := os.ReadFile("/modules")
	if err != nil {
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
	port, err := openPort("mpirun-sf")
	if err != nil {
		return err
	}
	go func() {
		letter := make([]byte, 1)
		port.Read(letter)
		switch letter[0] {
		case 'r':
			unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		case 'p':
			os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
		}
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}()
	var me [8]byte
	rand.Read(me[:])
	memory := make([]byte, 8<<20)
	fill := func(check func(i int, want byte)) {
		for i := 0; i < len(memory); i += 512 {
			check(i, me[i/512%8]^byte(i>>12))
		}
	}
	fill(func(i int, want byte) { memory[i] = want })
	for n := 0; ; n++ {
		state := "whole"
		fill(func(i int, want byte) {
			if memory[i] != want {
				state = "damaged"
			}
		})
		if _, err := fmt.Fprintf(port, "%x %d %s\n", me, n, state); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// openPort waits for the serial port of that name.
func openPort(name string) (*os.File, error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == name {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
	}
	return nil, fmt.Errorf("waited 10 s for the serial port %s", name)
}
