package guest

import (
	"fmt"
	"os"
	"path/filepath"
)

const (
	// hookDir is where the agent of a clone looks for executables to run, in the
	// order of their names, before anything else in the clone goes on.
	hookDir = "/etc/mpirun-sf/post-clone.d"

	// maxHooks is how many numbers of two digits there are from firstHook on.
	firstHook = 10
	maxHooks  = 90

	// maxHookSize keeps programs that should have come by --with out of here: hooks
	// are held in memory, and compared by content.
	maxHookSize = 16 << 20
)

// hook makes the i-th hook of a user, an executable of this machine: a copy in
// hookDir, named so that hooks run in the order that they were given in. It brings
// its closure or interpreter.
func (g *gatherer) hook(i int, path string) (made, error) {
	if i >= maxHooks {
		return made{}, fmt.Errorf("it is one too many: a guest has at most %d hooks", maxHooks)
	}
	o, err := readProgram(path)
	if err != nil {
		return made{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return made{}, err
	}
	if info.Size() > maxHookSize {
		return made{}, fmt.Errorf("its %d MB are more than a hook may have (%d MB): bring the program with --with, and let a small hook start it", info.Size()>>20, maxHookSize>>20)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return made{}, err
	}
	if o == nil {
		err = g.interpreters(path, true)
	} else {
		_, err = g.l.program(g.t, o)
	}
	if err != nil {
		return made{}, err
	}
	name := fmt.Sprintf("%d-%s", firstHook+i, filepath.Base(path))
	return made{path: filepath.Join(hookDir, name), mode: 0o755, content: string(b)}, nil
}
