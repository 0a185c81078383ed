package memtap

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

const benchPages = 16 << 10 // 64 MB

// busy returns the processor time of this process, the server.
func busy(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs a child's command on fresh files and reports its speed and what a read costs the server.
func measure(b *testing.B, tap *Tap, add func(name string) (path string), command string) {
	var took, cpu time.Duration
	var total Counters
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("%d", i)
		c := startChild(b)
		if answer := c.do("open %s", add(name)); answer != "ok" {
			b.Fatal(answer)
		}
		before := busy(b)
		d, err := time.ParseDuration(c.do("%s", command))
		if err != nil {
			b.Fatal(err)
		}
		cpu += busy(b) - before
		took += d
		c.stop()
		last, err := tap.Remove(name)
		if err != nil {
			b.Fatal(err)
		}
		total.Reads += last.Reads
		total.BytesServed += last.BytesServed
		for j, n := range last.Latency {
			total.Latency[j] += n
		}
	}
	b.ReportMetric(float64(total.Reads)/took.Seconds(), "reads/s")
	b.ReportMetric(float64(total.BytesServed)/took.Seconds()/1e6, "MB/s")
	b.ReportMetric(float64(cpu.Microseconds())/float64(total.Reads), "cpu-µs/read")
	b.ReportMetric(float64(total.Latency.Percentile(99).Microseconds()), "p99-µs")
}

// BenchmarkFaults touches every page of a fresh memory image once, in order.
func BenchmarkFaults(b *testing.B) {
	for _, content := range []string{"a", "0"} {
		for _, window := range []int{4 << 10, 32 << 10, 128 << 10} {
			b.Run(fmt.Sprintf("content=%s/window=%d", content, window), func(b *testing.B) {
				tap := mounted(b, Options{Window: window})
				im := stack(b, sealed(b, slice.Memory, filepath.Join(b.TempDir(), "ram"), strings.Repeat(content, benchPages)))
				measure(b, tap, func(name string) string {
					path, err := tap.AddMemory(name, im)
					if err != nil {
						b.Fatal(err)
					}
					return path
				}, fmt.Sprintf("walk 0 %d %d", page, benchPages))
			})
		}
	}
}

// BenchmarkDiskReads reads a disk with one request at a time.
func BenchmarkDiskReads(b *testing.B) {
	base := sealed(b, slice.Disk, filepath.Join(b.TempDir(), "root"), strings.Repeat("a", benchPages))
	for _, size := range []int{4 << 10, 128 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			tap := mounted(b, Options{})
			measure(b, tap, func(name string) string {
				path, _ := disk(b, tap, name, base)
				return path
			}, fmt.Sprintf("reads %d %d", size, benchPages*page/size))
		})
	}
}

// BenchmarkPush brings runs of 32 KB, 64 KB apart, into the kernel's cache: 16 MB by messages of Push, and by a process
// that reads them from the mount.
func BenchmarkPush(b *testing.B) {
	const run, apart = 8, 16
	var trace Trace
	for block := uint32(0); block < 2*16<<20/page; block += apart {
		trace = append(trace, Run{block, run})
	}
	for _, content := range []string{"a", "0"} {
		for _, how := range []string{"store", "child"} {
			b.Run(fmt.Sprintf("content=%s/by=%s", content, how), func(b *testing.B) {
				tap := mounted(b, Options{})
				im := stack(b, sealed(b, slice.Memory, filepath.Join(b.TempDir(), "ram"), strings.Repeat(content, benchPages)))
				var took, cpu time.Duration
				for i := 0; b.Loop(); i++ {
					name := fmt.Sprint(i)
					path, err := tap.AddMemory(name, im)
					if err != nil {
						b.Fatal(err)
					}
					c := opened(b, path)
					before := busy(b)
					if how == "store" {
						start := time.Now()
						push(b, tap, name, trace, trace.Blocks())
						took += time.Since(start)
					} else {
						own := c.cpu()
						d, err := time.ParseDuration(c.do("runs %d %d %d", run*page, apart*page, len(trace)))
						if err != nil {
							b.Fatal(err)
						}
						took, cpu = took+d, cpu+c.cpu()-own
					}
					cpu += busy(b) - before
					c.stop()
					if _, err := tap.Remove(name); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(took.Microseconds())/1e3/float64(b.N), "ms/16MB")
				b.ReportMetric(float64(cpu.Microseconds())/1e3/float64(b.N), "cpu-ms/16MB")
			})
		}
	}
}

// cpu is the child's processor time.
func (c *child) cpu() time.Duration {
	c.t.Helper()
	ns, err := strconv.ParseInt(c.do("cpu"), 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return time.Duration(ns)
}

// BenchmarkFarFaults touches pages whose blocks are on another host that is infinitely near, and pages whose blocks are
// here, in turn, and reports the times for a fault and how many times as long the first takes.
func BenchmarkFarFaults(b *testing.B) {
	const pages = 4 << 10 // 16 MB
	for _, window := range []int{4 << 10, 32 << 10} {
		b.Run(fmt.Sprintf("window=%d", window), func(b *testing.B) {
			tap := mounted(b, Options{Window: window})
			local := stack(b, sealed(b, slice.Memory, filepath.Join(b.TempDir(), "ram"), strings.Repeat("a", pages)))
			took := map[bool]time.Duration{}
			reads := map[bool]int64{}
			for i := 0; b.Loop(); i++ {
				for _, away := range []bool{true, false} {
					name, im := fmt.Sprint(i, away), local
					if away {
						im = stack(b, far(b, slice.Memory, strings.Repeat("a", pages)).here)
					}
					path, err := tap.AddMemory(name, im)
					if err != nil {
						b.Fatal(err)
					}
					c := opened(b, path)
					d, err := time.ParseDuration(c.do("walk 0 %d %d", page, pages))
					if err != nil {
						b.Fatal(err)
					}
					c.stop()
					n, err := tap.Remove(name)
					if err != nil {
						b.Fatal(err)
					}
					took[away], reads[away] = took[away]+d, reads[away]+n.Reads
				}
			}
			per := func(away bool) float64 { return float64(took[away].Nanoseconds()) / 1e3 / float64(reads[away]) }
			b.ReportMetric(per(true), "µs/far")
			b.ReportMetric(per(false), "µs/local")
			b.ReportMetric(per(true)/per(false), "far/local")
		})
	}
}
