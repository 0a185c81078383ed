package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cpuRoot is where Linux shows a machine's CPUs.
const cpuRoot = "/sys/devices/system/cpu"

// setOnline makes the machine run on its first n CPUs and on no other. A
// virtual machine is made with as many as its host could give; a ticket says
// how many it got.
func setOnline(n int) error { return setOnlineAt(cpuRoot, n) }

func setOnlineAt(root string, n int) error {
	present, err := readCPUs(filepath.Join(root, "present"))
	if err != nil {
		return err
	}
	if n < 1 || n > len(present) {
		return fmt.Errorf("bring %d CPUs online: the machine has %d", n, len(present))
	}
	online, err := readCPUs(filepath.Join(root, "online"))
	if err != nil {
		return err
	}
	runs := map[int]bool{}
	for _, cpu := range online {
		runs[cpu] = true
	}
	for i, cpu := range present {
		want := i < n
		if runs[cpu] == want {
			continue
		}
		state, word := "0", "offline"
		if want {
			state, word = "1", "online"
		}
		// Not os.WriteFile: a CPU without the file cannot change, and none is
		// made in a tree that is not the kernel's.
		f, err := os.OpenFile(filepath.Join(root, "cpu"+strconv.Itoa(cpu), "online"), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(state)
			f.Close()
		}
		if err != nil {
			return fmt.Errorf("bring CPU %d %s: %w", cpu, word, err)
		}
	}
	return nil
}

// readCPUs reads a list of CPUs as the kernel writes it: "0-3,8".
func readCPUs(path string) ([]int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("list the CPUs: %w", err)
	}
	text := strings.TrimSpace(string(b))
	var cpus []int
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(part, "-")
		from, err := strconv.Atoi(first)
		to := from
		if err == nil && ranged {
			to, err = strconv.Atoi(last)
		}
		if err != nil || from < 0 || to < from || to >= maxCPUs {
			return nil, fmt.Errorf("list the CPUs: %s holds %q", path, text)
		}
		for cpu := from; cpu <= to; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// maxCPUs is more than Linux can be built for (CONFIG_NR_CPUS).
const maxCPUs = 1 << 16
