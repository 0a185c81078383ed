package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What this program is in the VM, by its first argument.
const (
	writerMark = "in-vm-write" // BYTES: writes to that much memory for each line that it reads
	tickerMark = "in-vm-tick"  // writes a line every tick
)

// pageSize is the guest's.
const pageSize = 4096

// tick is how often the ticker writes.
const tick = time.Millisecond

// inVM is the program's side in the VM. It returns false on the host.
func inVM(args []string) (status int, is bool) {
	var err error
	switch {
	case len(args) == 2 && args[0] == writerMark:
		err = write(args[1])
	case len(args) == 1 && args[0] == tickerMark:
		err = ticks()
	default:
		return 0, false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	return 0, true
}

// write writes to every page of its memory, with other content each time, and
// says so with the line that it was told to with.
func write(size string) error {
	bytes, err := strconv.Atoi(size)
	if err != nil {
		return fmt.Errorf("write %s bytes: %w", size, err)
	}
	var memory []byte
	if bytes > 0 {
		// Not the Go runtime's, whose collector has its own mind about memory.
		if memory, err = unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
			return fmt.Errorf("take %d bytes: %w", bytes, err)
		}
	}
	in := bufio.NewScanner(os.Stdin)
	for n := uint64(1); in.Scan(); n++ {
		for at := 0; at < len(memory); at += pageSize {
			// No page is like another, and none is all zeros.
			binary.LittleEndian.PutUint64(memory[at:], n<<32|uint64(at/pageSize))
		}
		if _, err := fmt.Println(in.Text()); err != nil {
			return err
		}
	}
	return in.Err()
}

func ticks() error {
	pause := syscall.NsecToTimespec(tick.Nanoseconds())
	for {
		// Without Go's scheduler, which a slow virtual processor would notice.
		if err := syscall.Nanosleep(&pause, nil); err != nil && err != syscall.EINTR {
			return err
		}
		if _, err := os.Stdout.WriteString("\n"); err != nil {
			return err
		}
	}
}
