package agent

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// binDir is in the PATH of a VM's users: there this program appears under the
// names that they call it by.
const binDir = stateDir + "/bin"

// program is this program's file in the initramfs, which the root disk covers.
type program struct{ tree int }

// keepProgram takes hold of it before it is covered.
func keepProgram() (program, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/init", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return program{}, fmt.Errorf("take hold of the agent's own program: %w", err)
	}
	return program{fd}, nil
}

// show mounts it where users find it: no copy on the disk, none in memory.
func (p program) show() error {
	defer unix.Close(p.tree)
	if err := os.MkdirAll(binDir, 0o755); err != nil {
		return err
	}
	at := filepath.Join(binDir, "mpirun-sf")
	if err := os.WriteFile(at, nil, 0o755); err != nil {
		return err
	}
	if err := unix.MoveMount(p.tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("show the agent's own program at %s: %w", at, err)
	}
	return os.Symlink("mpirun-sf", filepath.Join(binDir, "sf"))
}
