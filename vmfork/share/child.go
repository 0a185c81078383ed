package share

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// A Config is one shared folder.
type Config struct {
	// Folder is an absolute path on the host.
	Folder string `json:"folder"`
	// ReadOnly refuses every change, with EROFS.
	ReadOnly bool `json:"read_only"`
	// UID, GID and Groups are the user whose rights the server has, and whose its new files are.
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups"`
	// Token is what clones show.
	Token Token `json:"token"`
}

const (
	// listenerFD is where the child finds its listening socket.
	listenerFD = 3
	// maxConfig bounds the configuration that the child reads, in bytes.
	maxConfig = 1 << 20
)

// A report is the child's one line of output.
type report struct {
	Error string `json:"error,omitempty"`
}

// ErrReported is matched by an error of [Main] that the parent knows already, and
// will tell: there is no need to say it twice.
var ErrReported = errors.New("reported to the parent")

// Main is the child process of [Start]: control is its standard input, with the Config as one line of JSON, and output
// its standard output, where it reports that it is ready. It serves until control or ctx ends.
//
// It changes the root directory and the user of the whole process, for good, and for that must be root. What it returns
// has been reported, unless it was ready before.
func Main(ctx context.Context, control io.Reader, output io.Writer, log zerolog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := bufio.NewReader(io.LimitReader(control, maxConfig))
	config, e, listener, err := prepare(in)
	if err != nil {
		_ = json.NewEncoder(output).Encode(report{Error: err.Error()})
		return fmt.Errorf("%w: %w", ErrReported, err)
	}
	defer e.close()
	if err := json.NewEncoder(output).Encode(report{}); err != nil {
		return fmt.Errorf("report that the shared folder is ready: %w", err)
	}
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, control)
	}()
	return e.accept(ctx, listener, config.Token, log)
}

func prepare(in *bufio.Reader) (config Config, e *export, listener net.Listener, err error) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return config, nil, nil, fmt.Errorf("read configuration of shared folder: %w", err)
	}
	if err := json.Unmarshal(line, &config); err != nil {
		return config, nil, nil, fmt.Errorf("read configuration of shared folder: %w", err)
	}
	file := os.NewFile(listenerFD, "listener")
	listener, err = net.FileListener(file)
	file.Close()
	if err != nil {
		return config, nil, nil, fmt.Errorf("inherit listener of shared folder: %w", err)
	}
	if e, err = confine(config); err != nil {
		listener.Close()
		return config, nil, nil, fmt.Errorf("share %s: %w", config.Folder, err)
	}
	return config, e, listener, nil
}

// confine makes the folder the process's root, and the user its user. The user's rights must reach to the folder: it is
// looked up as the user, in the one moment in which this process is the user and could still be root again.
func confine(config Config) (*export, error) {
	if config.UID < 0 || config.GID < 0 || config.Folder == "" || config.Folder[0] != '/' {
		return nil, errors.New("the configuration is incomplete")
	}
	time.Local = time.UTC // or the first log line would look for /etc/localtime, in the folder
	descriptors, err := openDescriptors()
	if err != nil {
		return nil, err
	}
	// syscall's functions, unlike those of x/sys/unix, change all threads.
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"set groups", func() error { return syscall.Setgroups(config.Groups) }},
		{"set group", func() error { return syscall.Setresgid(config.GID, config.GID, config.GID) }},
		{"try user", func() error { return syscall.Setresuid(config.UID, config.UID, 0) }},
		{"enter folder", func() error { return syscall.Chdir(config.Folder) }},
		{"be root again", func() error { return syscall.Setresuid(-1, 0, -1) }},
		{"change root directory", func() error { return syscall.Chroot(".") }},
		{"set user", func() error { return syscall.Setresuid(config.UID, config.UID, config.UID) }},
	} {
		if err := step.do(); err != nil {
			descriptors.Close()
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	// A mode is what the guest's process, with its umask, made of it.
	syscall.Umask(0)
	return newExport("/", descriptors, config.ReadOnly)
}
