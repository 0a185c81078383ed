package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// udpcastRun is how one file came to all hosts by Debian's udpcast.
type udpcastRun struct {
	took  time.Duration // from "Starting transfer" until the last receiver has written its last byte
	bytes float64       // that the origin's link carried
}

// udpcast sends a file from host 0 to all others with udp-sender and udp-receiver.
//
// It is timed to its advantage: not from the command but from the moment when the sender, which knows all of its receivers
// then, says that it starts, and not until the programs end (a receiver stays half a second in case its last
// acknowledgement is lost) but until the data is all there. What it receives goes into a pipe, and so nowhere.
//
// started is called when it starts to send. Until then no packet may be lost: a receiver that does not get the one answer
// to its request to join ends with an error.
func (h *hosts) udpcast(ctx context.Context, path string, size int64, started func() error, options ...string) (r udpcastRun, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ended := make([]int64, len(h.workers)-1)
	errs := make([]error, len(ended))
	var said [8]bytes.Buffer
	var wg sync.WaitGroup
	for i, w := range h.workers[1:] {
		cmd := w.host.Command(ctx, "udp-receiver", "--nokbd", "--interface", "eth0", "--start-timeout", "30", "--receive-timeout", "30")
		cmd.Stderr = &said[i%len(said)]
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			errs[i] = err
			cancel()
			break
		}
		wg.Go(func() {
			n, err := discard(out, size, &ended[i])
			if end := cmd.Wait(); err == nil {
				err = end
			}
			if err == nil && n != size {
				err = fmt.Errorf("%d of %d bytes came", n, size)
			}
			if err != nil {
				errs[i] = fmt.Errorf("udp-receiver on %s: %w: %s", w.host.Name, err, lastLine(said[i%len(said)].String()))
				cancel()
			}
		})
	}
	began, sendErr := int64(0), error(nil)
	if errors.Join(errs...) == nil {
		time.Sleep(200 * time.Millisecond) // the receivers start
		before, trafficErr := h.traffic(0)
		began, sendErr = h.udpSend(ctx, path, started, options)
		if sendErr != nil {
			cancel()
		}
		wg.Wait()
		after, moreErr := h.traffic(0)
		r.bytes = after - before
		sendErr = errors.Join(sendErr, trafficErr, moreErr)
	}
	wg.Wait()
	for _, t := range ended {
		r.took = max(r.took, time.Duration(t-began))
	}
	return r, errors.Join(append(errs, sendErr)...)
}

// udpSend runs the sender and returns when it started to send.
func (h *hosts) udpSend(ctx context.Context, path string, started func() error, options []string) (began int64, err error) {
	cmd := h.Host(0).Command(ctx, "udp-sender", append([]string{
		"--file", path, "--nokbd", "--interface", "eth0", "--min-receivers", fmt.Sprint(len(h.workers) - 1), "--start-timeout", "30",
	}, options...)...)
	cmd.Stdout = io.Discard
	messages, err := cmd.StderrPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var last string
	var startErr error
	lines := bufio.NewScanner(messages)
	lines.Split(linesAndReturns)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "Starting transfer") && began == 0 {
			began = now()
			startErr = started()
		}
		if s := strings.TrimSpace(lines.Text()); s != "" {
			last = s
		}
	}
	if err = cmd.Wait(); err != nil {
		return began, fmt.Errorf("udp-sender: %w: %s", err, last)
	}
	if began == 0 {
		return 0, fmt.Errorf("udp-sender did not say when it started: %s", last)
	}
	return began, startErr
}

// linesAndReturns splits what is written for a terminal, where a line may be written over.
func linesAndReturns(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

func lastLine(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\r' || r == '\n' })
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

// discard reads all there is, and notes when it had the first size bytes.
func discard(in io.Reader, size int64, at *int64) (n int64, err error) {
	buf := make([]byte, 1<<20)
	for {
		m, err := in.Read(buf)
		n += int64(m)
		if n >= size && *at == 0 {
			*at = now()
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// hasUDPCast says what is missing, if something is.
func hasUDPCast() error {
	for _, program := range []string{"udp-sender", "udp-receiver"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed: apt-get install udpcast", program)
		}
	}
	return nil
}
