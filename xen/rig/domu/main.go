// Command domu is the init of the rig's guest. It prints on its console, every quarter of a second,
//
//	rig guest <a number drawn at boot> <counter> <whole or damaged>
//
// where the last word says whether its memory is as it was.
package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// size is the memory that is looked after, in bytes.
const size = 8 << 20

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "to be run as the init of a guest")
		os.Exit(1)
	}
	// The kernel opens the console for init only where the initramfs has a node for it.
	if err := unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err == nil || err == unix.EBUSY {
		if console, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
			os.Stdout = console
		}
	}
	var me [8]byte
	rand.Read(me[:])
	memory := make([]byte, size)
	for i := range memory {
		memory[i] = me[i%8] ^ byte(i>>12)
	}
	for n := 0; ; n++ {
		state := "whole"
		for i := 0; i < size; i += 512 {
			if memory[i] != me[i%8]^byte(i>>12) {
				state = "damaged"
			}
		}
		fmt.Printf("rig guest %x %d %s\n", me, n, state)
		time.Sleep(250 * time.Millisecond)
	}
}
