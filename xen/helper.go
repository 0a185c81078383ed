package xen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// self is this program's file, also when that has been removed.
const self = "/proc/self/exe"

// Names by which this program is a process of a driver's, in a session of its own.
const (
	holderName = "mpirun-sf-xen-holder" // waits for the driver's end, and destroys what it has left
	fillerName = "mpirun-sf-xen-filler" // gives a domain its memory, all of it
	pagerName  = "mpirun-sf-xen-pager"  // gives a domain its memory as it touches it
	writerName = "mpirun-sf-xen-writer" // writes what a domain with its memory is made of
	readerName = "mpirun-sf-xen-reader" // reads a memory file to be compared
	diskName   = "mpirun-sf-xen-disk"   // serves a domain's disk
)

// The packages that import this one are not initialized yet, so nothing of them runs in a helper.
func init() {
	var err error
	switch filepath.Base(os.Args[0]) {
	case holderName:
		err = hold(os.Args[1])
	case fillerName:
		err = beFiller(os.Args[1:])
	case pagerName:
		err = bePager(os.Args[1:])
	case writerName:
		err = beWriter(os.Args[1:])
	case readerName:
		err = beReader(os.Args[1:])
	case diskName:
		err = beDisk(os.Args[1:])
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		unix.Exit(1)
	}
	unix.Exit(0)
}

// fill gives the machine's domain the frames that its guest had, and what the memory file has of them.
//
// A process of its own does it. The file may be memtap's, whose server is this process: a read that waits for a page of another
// host cannot be called off but by the end of who reads, and a process that is killed while it reads what it serves itself need not end.
// Nor does this process open it: with one processor, it was seen to stand still for ever when it started another with the file open.
func (v *vm) fill(ctx context.Context, frames *stream.Frames) error {
	list, err := frames.AppendBinary(nil)
	if err != nil {
		return err
	}
	cmd := v.d.process(ctx, self, nil)
	cmd.Args = append([]string{fillerName}, v.domainArgs()...)
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(list), &said
	err = cmd.Run()
	switch _, failed := errors.AsType[*exec.ExitError](err); {
	case ctx.Err() != nil:
		return fmt.Errorf("wait for its memory: %w", ctx.Err())
	case failed && said.Len() > 0:
		return errors.New(complaintOf(said.Bytes()))
	case err != nil:
		return fmt.Errorf("fill its memory: %w", err)
	}
	return nil
}

// beFiller is the filler's life. Its arguments are what domainArgs says; the list of frames is its input.
func beFiller(args []string) error {
	id, size, memory, err := openDomain(args)
	if err != nil {
		return err
	}
	list, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var frames stream.Frames
	if err := frames.UnmarshalBinary(list); err != nil {
		return err
	}
	handle, err := privcmd.Open()
	if err != nil {
		return err
	}
	return fill(context.Background(), handle, id, PVH.memoryMap(size), &frames, memory)
}

// domainArgs are the arguments of a helper that gives a domain its memory: the domain's number, how much memory it has, and the path of
// the memory file.
func (v *vm) domainArgs() []string {
	return []string{strconv.Itoa(int(v.id)), strconv.FormatInt(v.cfg.Memory, 10), v.cfg.MemoryPath}
}

// openDomain reads those arguments and opens the file.
func openDomain(args []string) (id privcmd.Domain, size int64, memory *os.File, err error) {
	if len(args) != 3 {
		return 0, 0, nil, fmt.Errorf("%d arguments instead of a domain, its memory and the file", len(args))
	}
	n, err := strconv.ParseUint(args[0], 10, 15)
	if err != nil {
		return 0, 0, nil, err
	}
	if size, err = strconv.ParseInt(args[1], 10, 64); err != nil {
		return 0, 0, nil, err
	}
	memory, err = os.Open(args[2])
	return privcmd.Domain(n), size, memory, err
}
