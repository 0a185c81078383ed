package main

import (
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// output is what a test binary prints with -test.v=test2json.
const output = "\x16=== RUN   TestGood\n" +
	"    good_test.go:10: a remark\n" +
	"\x16--- PASS: TestGood (0.01s)\n" +
	"\x16=== RUN   TestParts\n" +
	"\x16=== RUN   TestParts/one\n" +
	"    parts_test.go:12: it is wrong\n" +
	"\x16=== RUN   TestParts/two\n" +
	"\x16--- FAIL: TestParts (0.00s)\n" +
	"    \x16--- FAIL: TestParts/one (0.00s)\n" +
	"    \x16--- PASS: TestParts/two (0.00s)\n" +
	"\x16=== RUN   TestElsewhere\n" +
	"    else_test.go:9: there is no /dev/xen/privcmd\n" +
	"\x16--- SKIP: TestElsewhere (0.00s)\n" +
	"\x16FAIL\n"

func TestReport(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil { // which has test2json
		t.Skip(err)
	}
	var log strings.Builder
	var clock time.Duration
	r, err := read(t.Context(), &log, func() time.Duration { clock += 3 * time.Second; return clock })
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitAfterSeq(output, "a") {
		if _, err := r.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := r.end()
	if err != nil {
		t.Fatal(err)
	}
	want := report{
		passed:  2,
		failed:  []string{"TestParts/one", "TestParts"},
		skipped: []string{"TestElsewhere: else_test.go:9: there is no /dev/xen/privcmd"},
	}
	slices.Sort(got.failed)
	slices.Sort(want.failed)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	for _, text := range []string{"a remark", "--- FAIL: TestParts/one", "it is wrong", "TestGood: 3 s of a processor"} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("the log lacks %q:\n%s", text, &log)
		}
	}
	if line := got.line("xen/thing", false); !strings.HasPrefix(line, "FAIL\txen/thing\t") || !strings.Contains(line, "2 passed, 1 skipped, failed: TestParts") || !strings.Contains(line, "no /dev/xen/privcmd") {
		t.Errorf("in a line: %q", line)
	}
}
