package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// rule is what runtests goes by when it judges how a program ended. The names are those of the testlists.
type rule string

// rules are the ways to judge a run by what it wrote to stdout and stderr, and whether its exit status was 0. They
// return what is wrong with it, or "".
var rules = map[rule]func(lines []string, status int) string{
	"":                   noErrors,
	"TestStatus":         fails,
	"TestErrFatal":       fails,
	"TestStatusNoErrors": failsWithoutErrors,
}

var (
	sayNoErrors = regexp.MustCompile(`^\s*No [Ee]rrors\s*$`)
	sayPassed   = regexp.MustCompile(`^\s*Test Passed\s*$`)
)

// noErrors wants the one line of success, nothing else, and a status of 0.
func noErrors(lines []string, status int) string {
	said := false
	for _, line := range lines {
		switch {
		case sayNoErrors.MatchString(line) && !said:
			said = true
		case !sayPassed.MatchString(line):
			return unexpected(line)
		}
	}
	if !said {
		return "it ended without No Errors" + withStatus(status)
	}
	if status != 0 {
		return fmt.Sprintf("exit status %d", status)
	}
	return ""
}

// fails wants a status other than 0, whatever the output. The rules TestStatus and TestErrFatal are meant to differ in what
// output they allow, but runtests stops to read before it has looked at any.
func fails(_ []string, status int) string {
	if status == 0 {
		return "exit status 0, where another is wanted"
	}
	return ""
}

// failsWithoutErrors wants lines of success, nothing else, and nevertheless a status other than 0: that of a rank which was
// to die.
func failsWithoutErrors(lines []string, status int) string {
	if line, found := stray(lines); found {
		return unexpected(line)
	}
	if !slices.ContainsFunc(lines, sayNoErrors.MatchString) {
		return "it ended without No Errors" + withStatus(status)
	}
	return fails(nil, status)
}

// stray is the first line that is none of success.
func stray(lines []string) (line string, found bool) {
	i := slices.IndexFunc(lines, func(line string) bool { return !sayNoErrors.MatchString(line) && !sayPassed.MatchString(line) })
	if i < 0 {
		return "", false
	}
	return lines[i], true
}

func withStatus(status int) string {
	if status == 0 {
		return ""
	}
	return fmt.Sprintf(", exit status %d", status)
}

const longestLine = 160

// unexpected is for a line that is none of success.
func unexpected(line string) string {
	if len(line) > longestLine {
		line = strings.ToValidUTF8(line[:longestLine], "") + "..."
	}
	return fmt.Sprintf("it wrote %q", line)
}
