package xen

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
)

// roomLimit is how long xl may take to say what there is.
const roomLimit = 10 * time.Second

// room is [hypervisor.Kind.Room]: domain 0 has a share of the machine, and its kernel knows of no other.
func room() (cpus int, memory int64, err error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), roomLimit, fmt.Errorf("xl info had not ended after %v", roomLimit))
	defer cancel()
	d := &Driver{}
	defer d.Close()
	if d.xen, err = privcmd.Open(); err != nil {
		return 0, 0, err
	}
	if err := d.openTools(ctx); err != nil {
		return 0, 0, err
	}
	out, err := d.runTool(ctx, nil, "info")
	if err != nil {
		return 0, 0, err
	}
	i, err := parseInfo(out)
	if err != nil {
		return 0, 0, err
	}
	memory = i.free
	if i.balloons {
		own, err := allocator.Available()
		if err != nil {
			return 0, 0, err
		}
		memory += own
	}
	names, err := d.names(ctx)
	if err != nil {
		return 0, 0, err
	}
	for number, name := range names {
		n, err := strconv.ParseUint(number, 10, 15)
		if err != nil || markOf(name) == "" {
			continue
		}
		of, err := d.xen.Info(privcmd.Domain(n))
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return 0, 0, err
		}
		memory += int64(of.Pages) * pageSize
	}
	return i.cpus, memory, nil
}

// info is some of what "xl info" says.
type info struct {
	cpus     int
	free     int64 // bytes that no domain has
	balloons bool  // domain 0 makes room for others, as xl has it unless Xen was told how much domain 0 gets
}

// parseInfo reads it: lines of a name, a colon and a value.
func parseInfo(said string) (i info, err error) {
	values := map[string]string{}
	for line := range strings.Lines(said) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			values[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	cpus, err := strconv.ParseUint(values["nr_cpus"], 10, 16)
	if err != nil || cpus == 0 {
		return info{}, fmt.Errorf("xl info: its nr_cpus is %.20q", values["nr_cpus"])
	}
	free, err := strconv.ParseUint(values["free_memory"], 10, 32)
	if err != nil {
		return info{}, fmt.Errorf("xl info: its free_memory, in MB, is %.20q", values["free_memory"])
	}
	i = info{cpus: int(cpus), free: int64(free) << 20, balloons: true}
	for word := range strings.FieldsSeq(values["xen_commandline"]) {
		if strings.HasPrefix(word, "dom0_mem=") {
			i.balloons = false
		}
	}
	return i, nil
}
