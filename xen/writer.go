package xen

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// writerGrace is how long a writer may take to end when xl has.
const writerGrace = 5 * time.Second

// loadWhole has xl make a domain of a PV guest's state and of its memory, all at once: xl pins page tables, and writes into
// other pages, before it is done, so these must be there. What puts the two together is a process of its own, for the reasons that a filler has.
func (v *vm) loadWhole(ctx context.Context, b []byte) error {
	r, w, err := memoryPipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	cmd := v.d.process(ctx, self, nil)
	cmd.Args = []string{writerName, v.d.guests.String(), strconv.FormatInt(v.cfg.Memory, 10), v.cfg.MemoryPath}
	cmd.ExtraFiles = nil // not the owner's lock: it makes no domain, and ends with its output
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(b), w, &said
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start what writes its memory: %w", err)
	}
	w.Close()
	wait := make(chan error, 1)
	go func() { wait <- cmd.Wait() }()
	made := v.create(ctx, hypervisor.Kernel{}, r, "restore", "-p", "-e")
	r.Close() // what xl has not read, nobody will
	var written error
	select {
	case written = <-wait:
	case <-time.After(writerGrace): // it waits for memory that nobody wants any more
		cmd.Process.Kill()
		<-wait
	}
	if ctx.Err() != nil {
		return fmt.Errorf("wait for its memory: %w", ctx.Err())
	}
	return loadError(made, written, said.Bytes())
}

// loadError tells whose fault it is that no domain was made: xl's, or the writer's, of which xl's follows.
func loadError(made, written error, said []byte) error {
	ended, failed := errors.AsType[*exec.ExitError](written)
	switch {
	case made == nil: // it has read all
		return nil
	case len(said) > 0:
		return errors.New(complaintOf(said))
	case failed && ended.Sys().(syscall.WaitStatus).Signal() == syscall.SIGPIPE, written == nil:
		return fmt.Errorf("the device state does not load: %w", made)
	}
	return fmt.Errorf("what writes its memory has ended: %w", written)
}

// beWriter is the writer's life. Its arguments are the kind of guests, how much memory the machine has, and the path of the memory file; its
// input is the device state, its output what xl restores.
func beWriter(args []string) error {
	if len(args) != 3 || args[0] != PV.String() {
		return fmt.Errorf("arguments %q instead of %v, a size and a memory file", args, PV)
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	s, err := decodeState(b, PV)
	if err != nil {
		return err
	}
	memory, err := os.Open(args[2])
	if err != nil {
		return err
	}
	defer memory.Close()
	w := bufio.NewWriter(os.Stdout) // what is longer than its buffer goes past it
	if err := s.writeWhole(context.Background(), w, PV.memoryMap(size), memory); err != nil {
		return err
	}
	return w.Flush()
}

// writeWhole writes a saved domain with all of its pages: those outside of RAM from the state, the others from a memory file.
func (s *state) writeWhole(ctx context.Context, w io.Writer, l layout, memory io.ReaderAt) error {
	kept := map[uint64]stream.Page{}
	for _, p := range s.kept {
		kept[p.Frame] = p
	}
	return s.domain.WriteWith(w, ahead(ctx, batches(&s.frames), func(b *batch) error { return b.read(l, memory, kept) }))
}

// batch is some pages of a guest, and room for what is in them.
type batch struct {
	pages []stream.Page
	room  []byte
}

// batches are the pages of a list of frames, without content.
func batches(frames *stream.Frames) iter.Seq[[]stream.Page] {
	return func(yield func([]stream.Page) bool) {
		var pages []stream.Page
		for run := range frames.Runs() {
			for i := range run.Count {
				if pages = append(pages, stream.Page{Frame: run.First + i, Type: run.Type}); len(pages) < chunk {
					continue
				}
				if !yield(pages) {
					return
				}
				pages = nil
			}
		}
		if len(pages) > 0 {
			yield(pages)
		}
	}
}

// read reads what is in the pages, those that are consecutive in the memory file at once.
func (b *batch) read(l layout, memory io.ReaderAt, kept map[uint64]stream.Page) error {
	room := b.room
	for i := 0; i < len(b.pages); {
		p := &b.pages[i]
		if !p.Type.HasContent() {
			i++
			continue
		}
		first, ok := l.offset(p.Frame)
		if !ok {
			k, ok := kept[p.Frame]
			if !ok || k.Type != p.Type {
				return fmt.Errorf("%w: it lacks the page at frame %#x", errState, p.Frame)
			}
			p.Content = k.Content
			i++
			continue
		}
		begin := i
		for i++; i < len(b.pages) && b.pages[i].Type.HasContent(); i++ {
			if at, ok := l.offset(b.pages[i].Frame); !ok || at != first+int64(i-begin)*pageSize {
				break
			}
		}
		content := room[:(i-begin)*pageSize]
		room = room[len(content):]
		if n, err := memory.ReadAt(content, first); n < len(content) {
			return fmt.Errorf("read its memory file: %w", err)
		}
		for j := range b.pages[begin:i] {
			b.pages[begin+j].Content = content[j*pageSize:][:pageSize]
		}
	}
	return nil
}

// ahead gives batches in their order when they were read, some of which are read side by side meanwhile: what it waits for is mostly
// the memory file. What was in one is overwritten when the next is asked for. An error is the last that it gives.
func ahead(ctx context.Context, batches iter.Seq[[]stream.Page], read func(*batch) error) iter.Seq2[[]stream.Page, error] {
	type result struct {
		*batch
		err error
	}
	return func(yield func([]stream.Page, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		rooms := make(chan []byte, fillWorkers)
		for range fillWorkers {
			rooms <- make([]byte, chunk*pageSize)
		}
		queue := make(chan chan result, fillWorkers)
		go func() {
			defer close(queue)
			for pages := range batches {
				select {
				case room := <-rooms:
					to := make(chan result, 1)
					queue <- to
					go func() {
						b := &batch{pages, room}
						to <- result{b, read(b)}
					}()
				case <-ctx.Done():
					return
				}
			}
		}()
		for from := range queue {
			r := <-from
			if !yield(r.pages, r.err) || r.err != nil {
				return
			}
			rooms <- r.room
		}
	}
}
