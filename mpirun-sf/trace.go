package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
	"github.com/mpirun-sf/mpirun-sf/vmfork/trace"
)

// traceLimit is how long hosts may take to tell what they did.
const traceLimit = 10 * time.Second

// tell says what took how long on which host: under -v as a timeline, and with
// --trace in a file.
func (j *host) tell() error {
	if j.trace == "" && tui.level < verbose {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), traceLimit)
	defer cancel()
	t, err := j.daemon.Trace(ctx)
	if err != nil {
		return nil // the job has failed, and that is the error
	}
	for _, e := range t.Events {
		at := e.Begin.Add(-t.Ahead[e.Host]).Sub(j.begin)
		who := e.Host
		if e.Machine != "" {
			who += " " + e.Machine
		}
		tui.Detail("  %7.3f s  %-16s %s, %.1f ms", at.Seconds(), who, e.Name, ms(e.Duration))
	}
	if j.trace == "" {
		return nil
	}
	if err := j.writeTrace(t); err != nil {
		return fmt.Errorf("--trace: %w", err)
	}
	return nil
}

func (j *host) writeTrace(t sfld.Traced) error {
	c := trace.New("launcher", 0)
	c.Add(t.Events...)
	for host, ahead := range t.Ahead {
		c.Clock(host, ahead)
	}
	c.Add(j.phases...)
	f, err := os.OpenFile(j.trace, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := c.Write(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
