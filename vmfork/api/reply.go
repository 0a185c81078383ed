package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// A Kind is what a program can decide by when a call has failed.
type Kind string

const (
	KindInvalid     Kind = "invalid"     // a malformed line, no such call, a wrong argument
	KindUnknown     Kind = "unknown"     // no such ticket, checkpoint or machine: it may have been discarded
	KindRefused     Kind = "refused"     // not yours, or not allowed here
	KindState       Kind = "state"       // not now: the ticket has made its clones already
	KindResources   Kind = "resources"   // no clone can be granted
	KindFailed      Kind = "failed"      // the fork failed; the text says in which step
	KindLost        Kind = "lost"        // a clone ended without exit
	KindTimeout     Kind = "timeout"     // the time is over; the ticket stays
	KindKilled      Kind = "killed"      // the ticket was killed meanwhile
	KindCloned      Kind = "cloned"      // this caller is a copy that somebody else's fork made
	KindVersion     Kind = "version"     // the two sides do not fit
	KindUnavailable Kind = "unavailable" // nobody behind the socket
)

// Errors to compare with: errors.Is(err, ErrLost) holds for every error of
// that kind.
var (
	ErrInvalid     error = &Error{Kind: KindInvalid}
	ErrUnknown     error = &Error{Kind: KindUnknown}
	ErrRefused     error = &Error{Kind: KindRefused}
	ErrState       error = &Error{Kind: KindState}
	ErrResources   error = &Error{Kind: KindResources}
	ErrFailed      error = &Error{Kind: KindFailed}
	ErrLost        error = &Error{Kind: KindLost}
	ErrTimeout     error = &Error{Kind: KindTimeout}
	ErrKilled      error = &Error{Kind: KindKilled}
	ErrCloned      error = &Error{Kind: KindCloned}
	ErrVersion     error = &Error{Kind: KindVersion}
	ErrUnavailable error = &Error{Kind: KindUnavailable}
)

// An Error is an error reply.
type Error struct {
	Kind Kind
	Text string // what happened and what to do, for a person
}

func (e *Error) Error() string {
	if e.Text == "" {
		return string(e.Kind)
	}
	return string(e.Kind) + ": " + e.Text
}

// Is makes errors.Is compare kinds. An error of [KindTimeout] is also a
// [context.DeadlineExceeded]: whose clock it was makes no difference.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Text == "" && t.Kind == e.Kind || e.Kind == KindTimeout && target == context.DeadlineExceeded
}

// KindOf is the kind of an error that came from this package, or that wraps
// one; of any other error it is [KindFailed].
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindFailed
}

// A Reply answers one request. Err is nil in an "ok". Beside an error there
// may be Args too: those of [LostReply].
type Reply struct {
	Args Args
	Err  *Error
}

// OK is a reply with values "key", "value", "key", "value"...
func OK(keyValues ...string) Reply { return Reply{Args: pairs(keyValues)} }

// Fail is an error reply.
func Fail(kind Kind, format string, args ...any) Reply {
	return Reply{Err: &Error{Kind: kind, Text: fmt.Sprintf(format, args...)}}
}

// FailWith is the error reply for err. It keeps the kind of an [Error] that
// err wraps, and all of err's text.
func FailWith(err error) Reply {
	kind := KindOf(err)
	return Fail(kind, "%s", strings.TrimPrefix(err.Error(), string(kind)+": "))
}

// Line is the reply as it is sent, with its LF.
func (r Reply) Line() ([]byte, error) {
	line := []byte("ok")
	if r.Err != nil {
		if !isWord(string(r.Err.Kind)) {
			return nil, fmt.Errorf("write reply: kind %s is no word of lower-case letters, digits and -", short(string(r.Err.Kind)))
		}
		line = append([]byte("error kind="), r.Err.Kind...)
		line = appendValue(append(line, " text="...), r.Err.Text)
		for _, key := range []string{"kind", "text"} {
			if _, ok := r.Args.Get(key); ok {
				return nil, fmt.Errorf("write reply: an error has one %s", key)
			}
		}
	}
	line, err := appendArgs(line, r.Args)
	if err == nil {
		line, err = endLine(line)
	}
	if err != nil {
		return nil, fmt.Errorf("write reply: %w", err)
	}
	return line, nil
}

// ParseReply reads a line, without its LF. An error reply is no error of
// parsing: it is in the reply.
func ParseReply(line []byte) (Reply, error) {
	head, args, err := splitLine(line)
	switch {
	case err != nil:
		return Reply{}, fmt.Errorf("read the reply: %w", err)
	case head == "ok":
		return Reply{Args: args}, nil
	case head != "error":
		return Reply{}, fmt.Errorf("read the reply: it begins with %s, and not with ok or error", short(head))
	}
	// An error of kind and text, in this order, and then whatever else.
	if len(args) < 2 || args[0].Key != "kind" || args[1].Key != "text" || !isWord(args[0].Value) {
		return Reply{}, errors.New("read the reply: the error has no kind= and text=")
	}
	reply := Reply{Err: &Error{Kind: Kind(args[0].Value), Text: args[1].Value}}
	for _, a := range args[2:] {
		if a.Key == "kind" || a.Key == "text" {
			return Reply{}, fmt.Errorf("read the reply: the error has two %s=", a.Key)
		}
		reply.Args = append(reply.Args, a)
	}
	return reply, nil
}
