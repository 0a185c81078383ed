package agent

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
)

// preload adds [guest.Progress] to what is preloaded.
func preload(env []string) []string {
	object := progress()
	if object == "" {
		return env
	}
	return append(env, "LD_PRELOAD="+strings.TrimSpace(object+" "+lookup(env, "LD_PRELOAD")))
}

// progress is the path of the preload of [guest.Progress], "" if there is none. A
// guest has it as a file. On a host, where the agent may write nowhere, it is in the
// agent's memory, and there for as long as the agent is.
var progress = sync.OnceValue(func() string {
	if _, err := os.Stat(progressObject); err == nil {
		return progressObject
	}
	object, err := guest.Progress()
	if err != nil {
		return ""
	}
	fd, err := unix.MemfdCreate("progress.so", unix.MFD_CLOEXEC)
	if err != nil {
		return ""
	}
	if _, err := unix.Write(fd, object); err != nil {
		unix.Close(fd)
		return ""
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
})
