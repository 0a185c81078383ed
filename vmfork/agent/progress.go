package agent

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
)

// progress is the path of the preload of [guest.UCXProgress], "" if there is none. A
// guest has it as a file. On a host, where the agent may write nowhere, it is in the
// agent's memory, and there for as long as the agent is.
var progress = sync.OnceValue(func() string {
	if _, err := os.Stat(ucxProgress); err == nil {
		return ucxProgress
	}
	object, err := guest.UCXProgress()
	if err != nil {
		return ""
	}
	fd, err := unix.MemfdCreate("ucx-progress.so", unix.MFD_CLOEXEC)
	if err != nil {
		return ""
	}
	if _, err := unix.Write(fd, object); err != nil {
		unix.Close(fd)
		return ""
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
})
