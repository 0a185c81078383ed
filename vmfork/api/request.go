package api

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The calls. The paper's are in table I; transitive ones (2.3) are the same
// calls with the argument vm.
const (
	Whoami           = "whoami"
	RequestTicket    = "request-ticket"
	ShowTicket       = "ticket"
	Clone            = "clone"
	CheckpointParent = "checkpoint-parent"
	CreateClones     = "create-clones"
	Discard          = "discard"
	Exit             = "exit"
	Join             = "join"
	Kill             = "kill"
	Hold             = "hold"
	AwaitFork        = "await-fork"
	List             = "list"
)

// Limits of arguments.
const (
	MaxClones = 65000     // of one ticket, and so the highest id
	MaxVCPUs  = 1024      // of one clone
	MaxStatus = 255       // of exit
	MaxName   = 63        // bytes of a ticket's, a checkpoint's, a machine's name
	MaxWait   = 1_000_000 // seconds of join's timeout: eleven days
)

// A Request is one call.
type Request struct {
	Call string
	Args Args
}

// NewRequest is a call with arguments "key", "value", "key", "value"...
func NewRequest(call string, keyValues ...string) Request {
	return Request{Call: call, Args: pairs(keyValues)}
}

// With is the request with one argument more.
func (r Request) With(key, value string) Request {
	r.Args = append(slices.Clip(r.Args), Arg{Key: key, Value: value})
	return r
}

// Line is the request as it is sent, with its LF. It fails if the request has
// a word that no line can hold, or is too long for one.
func (r Request) Line() ([]byte, error) {
	if !isWord(r.Call) {
		return nil, fmt.Errorf("write call: %s is no word of lower-case letters, digits and -", short(r.Call))
	}
	line, err := appendArgs([]byte(r.Call), r.Args)
	if err == nil {
		line, err = endLine(line)
	}
	if err != nil {
		return nil, fmt.Errorf("write call %s: %w", r.Call, err)
	}
	return line, nil
}

// ParseRequest reads a line, without its LF. The call may be one that does not
// exist: that is what [Request.Check] looks at. Errors are of [KindInvalid].
func ParseRequest(line []byte) (Request, error) {
	call, args, err := splitLine(line)
	if err != nil {
		return Request{}, Fail(KindInvalid, "read the call: %v", err).Err
	}
	return Request{Call: call, Args: args}, nil
}

// rule checks one argument's value; it says what the value should have been,
// or nothing.
type rule func(value string) string

func number(low, high int) rule {
	return func(value string) string {
		if n, ok := parseInt(value); !ok || n < low || n > high {
			return fmt.Sprintf("a number from %d to %d", low, high)
		}
		return ""
	}
}

func name(value string) string {
	if IsName(value) {
		return ""
	}
	return fmt.Sprintf("1 to %d letters, digits, and . _ -", MaxName)
}

func seconds(value string) string {
	if _, ok := parseSeconds(value); ok {
		return ""
	}
	return fmt.Sprintf("seconds from 0 to %d, with a fraction or without", MaxWait)
}

// spec is what a call takes.
type spec struct{ required, optional map[string]rule }

type keys = map[string]rule

var calls = map[string]spec{
	Whoami:           {nil, keys{"vm": name}},
	RequestTicket:    {keys{"clones": number(1, MaxClones)}, keys{"hierarchical": number(0, 1), "vcpus": number(1, MaxVCPUs), "vm": name}},
	ShowTicket:       {keys{"ticket": name}, keys{"vm": name}},
	Clone:            {keys{"ticket": name}, keys{"vm": name}},
	CheckpointParent: {nil, keys{"vm": name}},
	CreateClones:     {keys{"checkpoint": name, "ticket": name}, keys{"vm": name}},
	Discard:          {keys{"checkpoint": name}, keys{"vm": name}},
	Exit:             {nil, keys{"status": number(0, MaxStatus), "vm": name}},
	Join:             {keys{"ticket": name}, keys{"timeout": seconds, "vm": name}},
	Kill:             {keys{"ticket": name}, keys{"clone": number(1, MaxClones), "vm": name}},
	Hold:             {nil, keys{"ticket": name, "checkpoint": name, "vm": name}},
	AwaitFork:        {},
	List:             {},
}

// Check tells whether the request is a call that exists, with all arguments
// that it needs, each once, and none that it does not know. Errors are of
// [KindInvalid] and name what is wrong.
func (r Request) Check() error {
	spec, ok := calls[r.Call]
	if !ok {
		return Fail(KindInvalid, "there is no call %s", short(r.Call)).Err
	}
	seen := map[string]bool{}
	for _, a := range r.Args {
		rule := spec.required[a.Key]
		if rule == nil {
			rule = spec.optional[a.Key]
		}
		if rule == nil {
			return Fail(KindInvalid, "%s takes no %s", r.Call, short(a.Key)).Err
		}
		if seen[a.Key] {
			return Fail(KindInvalid, "%s takes one %s, not two", r.Call, a.Key).Err
		}
		seen[a.Key] = true
		if want := rule(a.Value); want != "" {
			return Fail(KindInvalid, "%s: %s is %s, and should be %s", r.Call, a.Key, short(a.Value), want).Err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(spec.required)) {
		if !seen[key] {
			return Fail(KindInvalid, "%s wants %s=", r.Call, key).Err
		}
	}
	return nil
}

// Value is an argument, "" if it is not there.
func (r Request) Value(key string) string {
	value, _ := r.Args.Get(key)
	return value
}

// Int is a number of a request that [Request.Check] has passed, or missing if
// the argument is not there.
func (r Request) Int(key string, missing int) int {
	if n, ok := parseInt(r.Value(key)); ok {
		return n
	}
	return missing
}

// Timeout is join's timeout; ok is false if there is none.
func (r Request) Timeout() (d time.Duration, ok bool) {
	return parseSeconds(r.Value("timeout"))
}

// IsName tells whether s can be the name of a ticket, a checkpoint or a
// machine. Names fit into tuples and need no quotes in a shell.
func IsName(s string) bool {
	for i := range len(s) {
		switch b := s[i]; {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		case b == '.' || b == '_' || b == '-':
		default:
			return false
		}
	}
	return s != "" && len(s) <= MaxName
}

// parseInt reads a number of decimal digits, at most nine of them.
func parseInt(s string) (int, bool) {
	if s == "" || len(s) > 9 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// parseSeconds reads digits, and maybe a point and more digits.
func parseSeconds(s string) (time.Duration, bool) {
	whole, fraction, point := strings.Cut(s, ".")
	n, ok := parseInt(whole)
	if !ok || n > MaxWait || len(fraction) > 9 || point && fraction == "" || strings.Trim(fraction, "0123456789") != "" {
		return 0, false
	}
	nanoseconds, _ := parseInt((fraction + "000000000")[:9])
	return time.Duration(n)*time.Second + time.Duration(nanoseconds), true
}
