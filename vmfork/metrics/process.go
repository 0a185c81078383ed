package metrics

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Process is what a process has used.
type Process struct {
	CPU     time.Duration
	Touched int64 // bytes of memory that are mapped and here
	Own     int64 // bytes of them that no other process has and that it wrote
}

// tick is the kernel's unit of processor time for user space, USER_HZ, on every
// architecture that a hypervisor runs on.
const tick = 10 * time.Millisecond

// ReadProcess asks the kernel. It walks the process's page table, which takes
// some milliseconds for each gigabyte.
func ReadProcess(pid int) (p Process, err error) {
	folder := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(folder + "stat")
	if err != nil {
		return p, fmt.Errorf("see what process %d has used: %w", pid, err)
	}
	rollup, err := os.ReadFile(folder + "smaps_rollup")
	if err != nil {
		return p, fmt.Errorf("see what process %d has used: %w", pid, err)
	}
	if p, err = parseProcess(stat, rollup); err != nil {
		return Process{}, fmt.Errorf("see what process %d has used: %w", pid, err)
	}
	return p, nil
}

func parseProcess(stat, rollup []byte) (p Process, err error) {
	// The second field is the name, in parentheses, and may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return p, fmt.Errorf("%q is not a process's status", stat)
	}
	for _, field := range fields[11:13] { // utime and stime
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil || n < 0 {
			return p, fmt.Errorf("%q is not a process's status", stat)
		}
		p.CPU += time.Duration(n) * tick
	}
	for line := range bytes.Lines(rollup) {
		words := bytes.Fields(line)
		if len(words) != 3 || string(words[2]) != "kB" {
			continue
		}
		n, err := strconv.ParseInt(string(words[1]), 10, 53)
		if err != nil {
			continue
		}
		switch string(words[0]) {
		case "Rss:":
			p.Touched = n << 10
		case "Private_Dirty:":
			p.Own = n << 10
		}
	}
	return p, nil
}
