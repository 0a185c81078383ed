package qemu

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022 Fabrice Bellard and the QEMU Project developers\n": "7.2.22",
		"QEMU emulator version 7.2.0\n":                   "7.2.0",
		"QEMU emulator version 10.0.2 (qemu-10.0.2-1)\n":  "10.0.2",
		"QEMU emulator version 9.2.50 (v9.2.0-1-gabc)\n":  "9.2.50",
		"warning: something\nQEMU emulator version 8.1.3": "8.1.3",
		"QEMU emulator version 7.1.0\n":                   "",
		"QEMU emulator version 2.11.1(Debian)\n":          "",
		"QEMU emulator version 7.2\n":                     "",
		"QEMU emulator version x.y.z\n":                   "",
		"qemu-img version 7.2.22\n":                       "",
		"":                                                "",
		"QEMU emulator version 99999999999999999999.2.1":  "",
	} {
		got, err := parseVersion(out)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q is version %q (%v), want %q", out, got, err, want)
		}
	}
	if _, err := parseVersion("QEMU emulator version 6.2.0"); !errors.Is(err, hypervisor.ErrNotSupported) {
		t.Errorf("QEMU 6.2 is refused with %v", err)
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("QEMU emulator version 7.2.22 (Debian)")
	f.Add("QEMU emulator version 7.1.0")
	f.Add("")
	whole := regexp.MustCompile(`^\d+\.\d+\.\d+$`)
	f.Fuzz(func(t *testing.T, out string) {
		if release, err := parseVersion(out); err == nil && !whole.MatchString(release) {
			t.Errorf("%q is version %q", out, release)
		}
	})
}

func TestFindWithoutQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Find(t.Context(), TCG)
	if !errors.Is(err, hypervisor.ErrNotSupported) || !strings.Contains(err.Error(), "apt-get install qemu-system-x86") {
		t.Errorf("without QEMU: %v", err)
	}
}

// The probe ends soon, with a yes, or with a no that says why.
func TestProbe(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	begin := time.Now()
	accel, reason := Probe(ctx)
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the probe took %v", took)
	}
	if (accel == KVM) != (reason == nil) || accel != KVM && accel != TCG {
		t.Errorf("the probe says %s (%v)", accel, reason)
	}
	if reason != nil && (!errors.Is(reason, hypervisor.ErrNotSupported) || !strings.Contains(reason.Error(), "KVM is not usable here (")) {
		t.Errorf("the reason is %v", reason)
	}
	t.Logf("%s (%v)", accel, reason)
}

// The parent's machine and its clones' are the same but for what must differ.
func TestMachines(t *testing.T) {
	d := &Driver{Binary: "/usr/bin/" + Binary, Accel: TCG, Release: "7.2.22"}
	cfg := hypervisor.Config{Name: "clone-1", Dir: "/job", Shape: hypervisor.Shape{VCPUs: 2, Memory: 512 << 20}, MemoryPath: "/job/memory", DiskPath: "/job/disk"}
	boot, clone := d.args(cfg, "on"), d.args(cfg, "off")
	differ := 0
	for i := range boot {
		if boot[i] != clone[i] {
			differ++
			if strings.Replace(boot[i], "share=on", "share=off", 1) != clone[i] {
				t.Errorf("%q and %q", boot[i], clone[i])
			}
		}
	}
	if differ != 1 {
		t.Errorf("%d arguments differ", differ)
	}
	all := strings.Join(clone, " ")
	for _, want := range []string{"-m 512 ", "-smp 2 ", "size=536870912,mem-path=/job/memory", "file.filename=/job/disk"} {
		if !strings.Contains(all+" ", want) {
			t.Errorf("%q is not in %s", want, all)
		}
	}
	if strings.Contains(all, "netdev") {
		t.Errorf("a machine without a tap has a network: %s", all)
	}
	// Each has its time from elsewhere.
	for accel, want := range map[Accel]string{TCG: " tsc=reliable", KVM: " initcall_blacklist=cmos_init"} {
		line := (&Driver{Accel: accel}).cmdline("own")
		if !strings.Contains(line, " own") || strings.Contains(line, "tsc=") != (accel == TCG) || !strings.HasSuffix(line, want) {
			t.Errorf("under %s the kernel is told %q", accel, line)
		}
	}
	if v := d.Version(); !strings.HasPrefix(v, "QEMU 7.2.22 microvm tcg tsc=") {
		t.Errorf("the version is %q", v)
	}
	if v := (&Driver{Accel: KVM, Release: "7.2.22"}).Version(); v != "QEMU 7.2.22 microvm kvm cpu="+kvmProcessor() {
		t.Errorf("the version is %q", v)
	}
}

func TestTailBuffer(t *testing.T) {
	var b tailBuffer
	if b.last() != "" {
		t.Errorf("nothing ends with %q", b.last())
	}
	for i := range 1000 {
		fmt.Fprintf(&b, "qemu-system-x86_64: line %d\n\n", i)
	}
	if b.last() != "line 999" {
		t.Errorf("the last line is %q", b.last())
	}
	if len(b.buf) > 4096 {
		t.Errorf("%d bytes are kept", len(b.buf))
	}
}
