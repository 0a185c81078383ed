package mcdist

import (
	"errors"
	"fmt"
	"time"
)

// ErrClosed is the end of what is still wanted of a Node or a Fetch that was closed here.
var ErrClosed = errors.New("mcdist was closed")

// ErrWithdrawn is a slice or an object that its origin does not serve: not yet, or not any more.
var ErrWithdrawn = errors.New("it is not served")

// SilentError says that a host did not answer.
type SilentError struct {
	Host   string
	Waited time.Duration // since its last word on the matter
	Cause  error         // why there is no connection, if there is none
}

func (e *SilentError) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("no answer from host %s for %v (%v): see whether it is up and the network reaches it", e.Host, e.Waited, e.Cause)
	}
	return fmt.Sprintf("no answer from host %s for %v: see whether it is up and the network reaches it", e.Host, e.Waited)
}

func (e *SilentError) Unwrap() error { return e.Cause }

// refusal is why a host gives no answer.
type refusal uint8

const (
	refuseUnknown refusal = 1 + iota // it does not serve that
	refuseFailed                     // it cannot read that
	refuseEnded                      // it ends
	refuseVersion                    // it speaks another version
	refuseDeaf                       // it does not hear multicast
)

// RefusedError is a host's word that there will be no answer. It is ErrWithdrawn for errors.Is, if the host does not
// serve what was asked for.
type RefusedError struct {
	Host string
	Code refusal
	Text string
}

func (e *RefusedError) Error() string { return fmt.Sprintf("host %s: %s", e.Host, e.Text) }

func (e *RefusedError) Unwrap() error {
	if e.Code == refuseUnknown {
		return ErrWithdrawn
	}
	return nil
}
