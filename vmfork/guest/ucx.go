package guest

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

// preload holds ucx-progress.c and, after make build, ucx-progress.so. The
// folder rather than the file is embedded so that a plain go build works.
//
//go:embed preload
var preload embed.FS

// UCXProgress returns the shared object that cures the deadlock of MPICH up to
// 4.1 on UCX in MPI_Finalize; preload/ucx-progress.c explains it. It belongs into
// LD_PRELOAD of programs for which [Files.UCX] is set, and of no others.
func UCXProgress() ([]byte, error) {
	b, err := preload.ReadFile("preload/ucx-progress.so")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("this mpirun-sf was built without ucx-progress.so, without which MPICH programs hang in MPI_Finalize: build it with make build")
	}
	if err != nil {
		return nil, fmt.Errorf("read ucx-progress.so: %w", err)
	}
	return b, nil
}
