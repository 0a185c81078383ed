package xen

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
)

// consoleLog copies a guest's first console from xenconsoled's terminal to a file.
type consoleLog struct {
	tty  *os.File
	done chan struct{}
}

// logConsole begins to copy.
func (d *Driver) logConsole(ctx context.Context, id privcmd.Domain, path string) (*consoleLog, error) {
	tty, err := d.store.Await(ctx, fmt.Sprintf("/local/domain/%d/console/tty", id), "xenconsoled to open a terminal",
		func(v string) bool { return v != "" })
	if err != nil {
		return nil, err
	}
	in, err := os.OpenFile(tty, os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("read the console: %w", err)
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("log the console: %w", err)
	}
	l := &consoleLog{in, make(chan struct{})}
	go func() {
		defer close(l.done)
		defer out.Close()
		io.Copy(out, in) // until xenconsoled or close ends it
	}()
	return l, nil
}

func (l *consoleLog) close() error {
	err := l.tty.Close()
	<-l.done
	return err
}
