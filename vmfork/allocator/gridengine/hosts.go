package gridengine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// Limits of what is read, beyond what anybody has.
const (
	maxSize  = 4 << 20 // bytes of PE_HOSTFILE
	maxHosts = 65536
	maxSlots = 65535 // of a host
	maxName  = 255   // bytes of a host's name
)

// readHosts reads a PE_HOSTFILE.
func readHosts(path string) ([]allocator.Host, error) {
	fail := func(err error) ([]allocator.Host, error) {
		return nil, fmt.Errorf("read Grid Engine's PE_HOSTFILE=%q: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	hosts, err := parseHosts(f)
	if err != nil {
		return fail(err)
	}
	return hosts, nil
}

// parseHosts reads lines of: host, slots, queue, processors. A host that has
// slots of several queues has a line for each. A slot stands for a core.
func parseHosts(r io.Reader) ([]allocator.Host, error) {
	var hosts []allocator.Host
	at := map[string]int{}
	limited := &io.LimitedReader{R: r, N: maxSize}
	in := bufio.NewScanner(limited)
	for number := 1; in.Scan(); number++ {
		fields := strings.Fields(in.Text())
		if len(fields) == 0 {
			continue
		}
		fail := func(err error) ([]allocator.Host, error) {
			return nil, fmt.Errorf("line %d, %.100q: %w", number, in.Text(), err)
		}
		if len(fields) < 2 {
			return fail(errors.New("it is not a host and its slots"))
		}
		if err := checkName(fields[0]); err != nil {
			return fail(err)
		}
		slots, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil || slots == 0 || slots > maxSlots {
			return fail(fmt.Errorf("%q is not a number of slots", fields[1]))
		}
		i, known := at[fields[0]]
		if !known {
			if len(hosts) == maxHosts {
				return fail(fmt.Errorf("more than %d hosts", maxHosts))
			}
			i = len(hosts)
			at[fields[0]] = i
			hosts = append(hosts, allocator.Host{Name: fields[0]})
		}
		if hosts[i].Slots += int(slots); hosts[i].Slots > maxSlots {
			return fail(fmt.Errorf("more than %d slots", maxSlots))
		}
		hosts[i].CPUs = hosts[i].Slots
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	if limited.N == 0 {
		return nil, fmt.Errorf("more than %d bytes", maxSize)
	}
	if len(hosts) == 0 {
		return nil, errors.New("there is no host in it")
	}
	return hosts, nil
}

// checkName lets only names pass that can be hosts', and that are no options
// where they become arguments.
func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("a name of more than %d bytes", maxName)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case (c == '-' || c == '.') && i > 0:
		default:
			return fmt.Errorf("%q is not the name of a host", name)
		}
	}
	return nil
}

// parseMemory finds what a job asked for in what qstat -j says of it: bytes for
// each slot, 0 if it asked for none.
func parseMemory(job string) int64 {
	found := map[string]int64{}
	for line := range strings.Lines(job) {
		list, ok := strings.CutPrefix(line, "hard resource_list:")
		if !ok {
			continue
		}
		for _, request := range strings.Split(strings.TrimSpace(list), ",") {
			name, value, _ := strings.Cut(request, "=")
			if n, ok := parseAmount(value); ok {
				found[name] = n
			}
		}
	}
	if n := found["h_vmem"]; n > 0 {
		return n
	}
	return found["mem_free"]
}

// parseAmount reads Grid Engine's amounts: K, M, G, T count in 1024, and k, m, g
// and t in 1000.
func parseAmount(s string) (int64, bool) {
	const most = 1 << 46 // bytes of a slot: all slots of a host are no overflow
	unit := 1.0
	if s != "" {
		if i := strings.IndexByte("KMGT", s[len(s)-1]); i >= 0 {
			unit, s = float64(int64(1)<<(10*(i+1))), s[:len(s)-1]
		} else if i := strings.IndexByte("kmgt", s[len(s)-1]); i >= 0 {
			unit, s = []float64{1e3, 1e6, 1e9, 1e12}[i], s[:len(s)-1]
		}
	}
	if s == "" || strings.Trim(s, "0123456789.") != "" {
		return 0, false
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n*unit > most {
		return 0, false
	}
	return int64(n * unit), true
}
