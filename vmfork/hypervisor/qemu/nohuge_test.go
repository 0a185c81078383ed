package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// adviseMark makes this binary a program that asks for huge pages.
const adviseMark = "MPIRUN_SF_TEST_ADVISE"

func TestMain(m *testing.M) {
	if os.Getenv(adviseMark) != "" {
		advise()
		return
	}
	os.Exit(m.Run())
}

// advise prints what the kernel says to each advice, one on a line.
func advise() {
	mem, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, a := range []struct {
		name  string
		value int
	}{{"huge", unix.MADV_HUGEPAGE}, {"no huge", unix.MADV_NOHUGEPAGE}, {"do not need", unix.MADV_DONTNEED}, {"do not dump", unix.MADV_DONTDUMP}, {"do not fork", unix.MADV_DONTFORK}, {"none", 12345}} {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(a.value))
		fmt.Printf("%s: %d\n", a.name, errno)
	}
	if _, err := os.ReadFile("/proc/self/status"); err != nil {
		fmt.Println(err)
	}
}

func advised(t *testing.T, start func(*exec.Cmd) error) (string, error) {
	var out strings.Builder
	cmd := exec.Command(os.Args[0])
	// A program that is compiled to measure what tests cover has something to write.
	cmd.Env = append(os.Environ(), adviseMark+"=1", "GOCOVERDIR="+t.TempDir())
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// What is started without huge pages misses them and nothing else, however many
// are started at once; and this process keeps them.
func TestStartNoHuge(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got, err := advised(t, startNoHuge)
			want := fmt.Sprintf("huge: %d\nno huge: 0\ndo not need: 0\ndo not dump: 0\ndo not fork: 0\nnone: %d\n", unix.EINVAL, unix.EINVAL)
			if err != nil || got != want {
				t.Errorf("under the filter (%v):\n%swant:\n%s", err, got, want)
			}
		})
	}
	wg.Wait()
	got, err := advised(t, (*exec.Cmd).Start)
	if err != nil || !strings.HasPrefix(got, "huge: 0\n") {
		t.Errorf("without the filter (%v):\n%s", err, got)
	}
	if err := startNoHuge(exec.Command("/no/such/program")); err == nil {
		t.Error("a program that is not there started")
	}
}
