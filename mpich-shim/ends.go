package mpichshim

import (
	"fmt"
	"strings"
	"syscall"
)

// End is how a rank ended.
type End struct {
	Rank   int
	PID    int
	Host   string // as the user named it
	Status int    // its exit status, if no signal ended it
	Signal int
	Core   bool // it left a core file
}

// wait is it as wait(2) has it.
func (e End) wait() int {
	if e.Signal != 0 {
		if e.Core {
			return e.Signal | 0x80
		}
		return e.Signal
	}
	return e.Status & 0xff << 8
}

// Ends gathers how ranks end. What Hydra says is the bitwise OR of all.
type Ends struct {
	AutoCleanup bool
	byRank      map[int]End
	or          int
	banner      string
}

// Add takes a rank's end and returns what is to be said of it at once, "" for
// nothing: the first that a signal ended is worth a banner.
func (e *Ends) Add(one End) (banner string) {
	if e.byRank == nil {
		e.byRank = map[int]End{}
	}
	e.byRank[one.Rank] = one
	e.or |= one.wait()
	if one.Signal == 0 || !e.AutoCleanup || e.banner != "" {
		return ""
	}
	rule := strings.Repeat("=", 83)
	e.banner = fmt.Sprintf("\n%s\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   PID %d RUNNING AT %s\n=   EXIT CODE: %d\n"+
		"=   CLEANING UP REMAINING PROCESSES\n=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES\n%s\n", rule, one.PID, one.Host, one.wait(), rule)
	return e.banner
}

// Status is the exit status, and what is to be said of it, "" for nothing.
func (e *Ends) Status() (status int, said string) {
	if n := syscall.Signal(e.or & 0x7f); n != 0 {
		said = fmt.Sprintf("YOUR APPLICATION TERMINATED WITH THE EXIT STRING: %s (signal %d)\n"+
			"This typically refers to a problem with your application.\nPlease see the FAQ page for debugging suggestions\n", signalName(n), int(n))
		return e.or & 0xff, said
	}
	return e.or >> 8 & 0xff, ""
}

// signalName is strsignal(3).
func signalName(n syscall.Signal) string {
	s := n.String()
	if strings.HasPrefix(s, "signal ") {
		return fmt.Sprintf("Unknown signal %d", int(n))
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// ExitCodes is the line of -print-all-exitcodes: for each node its host's name and
// the ranks in order. Ranks that were ended with the job count as 0.
func (e *Ends) ExitCodes(nodes []Host, ranks [][]int) string {
	var b strings.Builder
	b.WriteString("Exit codes: ")
	for i, n := range nodes {
		if len(ranks[i]) == 0 {
			continue
		}
		codes := make([]string, len(ranks[i]))
		for k, rank := range ranks[i] {
			codes[k] = fmt.Sprint(e.byRank[rank].wait())
		}
		fmt.Fprintf(&b, "[%s] %s\n", n.Name, strings.Join(codes, ","))
	}
	return b.String()
}
