package pmix

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
)

// helper holds the sources of sfpmix and, after make build on a machine with libpmix's headers, the program. The folder
// rather than the file is embedded so that a plain go build works.
//
//go:embed helper
var helper embed.FS

// ErrNotBuiltIn says that this program has no helper.
var ErrNotBuiltIn = errors.New("PMIx is not built in: install libpmix-dev and run make build again, or use --via orted")

// Helper returns the helper, an executable that needs libpmix.so.2 where it runs. It takes no arguments; its standard
// input and output are the stream for Attach.
func Helper() ([]byte, error) {
	b, err := helper.ReadFile("helper/sfpmix")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotBuiltIn
	}
	if err != nil {
		return nil, fmt.Errorf("read the PMIx helper: %w", err)
	}
	return b, nil
}

// Yield is the parameter by which a rank of Open MPI that waits calls sched_yield between two polls. It is a preference and
// not a need: a user's own stands.
const Yield = "OMPI_MCA_mpi_yield_when_idle=1"

// Environ is what a rank of Open MPI must find in its environment beside Node.Environ. ip is the address of its node on the
// job's network; "" lets Open MPI choose.
func (j Job) Environ(rank int, ip string) []string {
	local, size := 0, 0
	for _, p := range j.Places {
		for i, r := range p.Ranks {
			if r == rank {
				local, size = i, len(p.Ranks)
			}
		}
	}
	env := []string{
		// Open MPI 4 takes a rank that has no daemon for one that was started alone. It never speaks to this one: there
		// can be none at this port.
		"OMPI_MCA_orte_local_daemon_uri=0.0;tcp://127.0.0.1:1",
		"OMPI_MCA_ess=pmi",
		"PMIX_MCA_gds=hash", // as the helper has it
		fmt.Sprintf("OMPI_COMM_WORLD_RANK=%d", rank),
		fmt.Sprintf("OMPI_COMM_WORLD_SIZE=%d", j.size()),
		fmt.Sprintf("OMPI_COMM_WORLD_LOCAL_RANK=%d", local),
		fmt.Sprintf("OMPI_COMM_WORLD_LOCAL_SIZE=%d", size),
		fmt.Sprintf("OMPI_COMM_WORLD_NODE_RANK=%d", local),
		fmt.Sprintf("OMPI_UNIVERSE_SIZE=%d", max(1, j.Universe)),
	}
	if addr, err := netip.ParseAddr(ip); err == nil {
		// One bit less than the whole address: with all of them Open MPI 4.1 takes every interface, the loopback too.
		only := netip.PrefixFrom(addr, addr.BitLen()-1).String()
		env = append(env, "OMPI_MCA_btl_tcp_if_include="+only, "OMPI_MCA_oob_tcp_if_include="+only)
	}
	return env
}
