package allocator

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Available is the kernel's estimate of what can be used without swapping.
func Available() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return parseAvailable(f)
}

func parseAvailable(r io.Reader) (int64, error) {
	in := bufio.NewScanner(r)
	for in.Scan() {
		if rest, ok := strings.CutPrefix(in.Text(), "MemAvailable:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil || kb < 0 || kb > 1<<50 {
				return 0, fmt.Errorf("read /proc/meminfo: %q is not a size", rest)
			}
			return kb << 10, nil
		}
	}
	return 0, errors.New("read /proc/meminfo: it has no MemAvailable")
}
