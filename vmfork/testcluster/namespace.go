package testcluster

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// newNamespace makes a network namespace that only the returned file holds, without IPv6, whose chatter about routers and
// duplicate addresses would be counted as traffic.
func newNamespace() (*os.File, error) {
	var file *os.File
	err := onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		for _, name := range []string{"all", "default"} {
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
		}
		file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace (it takes root): %w", err)
	}
	return file, nil
}

// inside runs f on a thread that is in the network namespace.
func inside(namespace *os.File, f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that f may move to another network namespace. The thread is brought back afterwards,
// or, when that fails, dropped: the runtime ends the thread of a goroutine that returns locked.
func onOwnThread(f func() error) error {
	type outcome struct {
		err   error
		panic any
	}
	done := make(chan outcome, 1)
	go func() {
		var out outcome
		finished := false
		runtime.LockOSThread()
		defer func() {
			if !finished {
				if out.panic = recover(); out.panic == nil {
					out.err = fmt.Errorf("the goroutine was ended (t.FailNow is for the test's own goroutine)")
				}
			}
			done <- out
		}()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			finished, out.err = true, err
			return
		}
		defer home.Close()
		out.err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		finished = true
	}()
	out := <-done
	if out.panic != nil {
		panic(out.panic)
	}
	return out.err
}
