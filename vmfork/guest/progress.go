package guest

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

// preload holds progress.c and, after make build, progress.so. The
// folder rather than the file is embedded so that a plain go build works.
//
//go:embed preload
var preload embed.FS

// Progress returns the shared object that cures the deadlock of MPICH up to
// 4.1 on UCX in MPI_Finalize, and lets ranks that poll leave cores to others;
// preload/progress.c explains it. It belongs into LD_PRELOAD of programs for which
// [Files.UCX] is set, and of Open MPI's.
func Progress() ([]byte, error) {
	b, err := preload.ReadFile("preload/progress.so")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("this mpirun-sf was built without progress.so, without which MPICH programs hang in MPI_Finalize: build it with make build")
	}
	if err != nil {
		return nil, fmt.Errorf("read progress.so: %w", err)
	}
	return b, nil
}
