package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/pmi/pmix"
)

// spawnHelper starts the PMIx helper, from a file that is gone when this returns.
func spawnHelper(cmd Command, stdio [3]io.ReadWriteCloser) (*process, error) {
	program, err := pmix.Helper()
	if err != nil {
		return nil, err
	}
	dir := stateDir
	if unix.Access(dir, unix.W_OK) != nil {
		dir = os.TempDir()
	}
	file, err := os.CreateTemp(dir, "sfpmix-")
	if err != nil {
		return nil, fmt.Errorf("write the PMIx helper: %w", err)
	}
	defer os.Remove(file.Name())
	_, err = file.Write(program)
	if err == nil {
		err = file.Chmod(0o755)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("write the PMIx helper: %w", err)
	}
	cmd.Argv = []string{file.Name()}
	// A process that is being started beside this may hold the file open for writing, until it has become its program.
	for range busyTries {
		p, err := spawn(cmd, stdio, nil)
		if !errors.Is(err, unix.ETXTBSY) {
			return p, err
		}
		time.Sleep(busyPause)
	}
	return nil, fmt.Errorf("start the PMIx helper: %w", unix.ETXTBSY)
}

// How often, and after how long, a file is tried that is busy.
const (
	busyTries = 100
	busyPause = 5 * time.Millisecond
)
