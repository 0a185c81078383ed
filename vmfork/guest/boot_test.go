package guest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The image boots: modules load in the order given, the devices appear, the root
// mounts, and in it the shell runs and an MPICH program finds all that it needs.
func TestImageBoots(t *testing.T) {
	qemu := need(t, "qemu-system-x86_64", "qemu-system-x86")
	prog := hello(t)
	dir := t.TempDir()
	so := writeProgress(t, dir)
	cmd := write(t, filepath.Join(dir, "command"), "set -e\n"+
		"export LD_PRELOAD="+so+" \n"+
		prog+"\n", 0o644)
	// What a share brings in a real job is part of the root here.
	spec := Spec{Program: prog, Agent: testAgent(t), Kernel: testKernel(t), With: []string{prog, cmd, so}}
	cache := &Cache{Dir: filepath.Join(dir, "cache")}
	img, err := Build(t.Context(), cache, spec, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	defer img.Release()
	t.Logf("image of %d MB made in %v", img.Used>>20, img.Took)
	// The init looks for the command at a fixed place.
	command(t, need(t, "debugfs", "e2fsprogs"), "-w", "-R", "write "+cmd+" command", img.Root)

	out := bootGuest(t, qemu, img)
	for _, want := range []string{"GUEST OK", "hello from 0 of 1"} {
		if !strings.Contains(out, want) {
			t.Errorf("the guest did not say %q:\n%s", want, out)
		}
	}
}

// A guest with a shell is one that one can look around in, and its programs can
// open connections with nothing but bash.
func TestShellBoots(t *testing.T) {
	qemu := need(t, "qemu-system-x86_64", "qemu-system-x86")
	dir := t.TempDir()
	cmd := write(t, filepath.Join(dir, "command"), `set -e
. /etc/profile
hostname before
bash -ic 'hostname after; echo "prompt ${PS1@P}"'
ps -e | grep -c kthreadd
top -b -n 1 | head -1 | cut -c1-3
ip -o addr show lo | grep -o 127.0.0.1/8
findmnt -n -o FSTYPE /
mount -t tmpfs none /mnt && df /mnt | grep -c tmpfs && umount /mnt
echo written > /root/file && cat /root/file
timeout 5 bash -c 'exec 3<>/dev/tcp/127.0.0.1/9' 2>&1 | grep -o 'Connection refused' | head -1
/etc/mpirun-sf/post-clone.d/10-hook
`, 0o644)
	hook := write(t, filepath.Join(dir, "hook"), "#!/bin/bash\necho hook on $HOSTNAME\n", 0o755)
	spec := Spec{Tools: true, Agent: testAgent(t), Kernel: testKernel(t), Hooks: []string{hook}}
	img, err := Build(t.Context(), &Cache{Dir: filepath.Join(dir, "cache")}, spec, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	defer img.Release()
	t.Logf("image of %d MB made in %v", img.Used>>20, img.Took)
	if m, err := readEntry(img.Dir); err != nil || m.Program != "a shell" {
		t.Errorf("the image is for %q, %v", m.Program, err)
	}
	command(t, need(t, "debugfs", "e2fsprogs"), "-w", "-R", "write "+cmd+" command", img.Root)
	out := bootGuest(t, qemu, img)
	for _, want := range []string{
		"prompt after:/# ", "\n1\n", "top", "127.0.0.1/8", "\next4\n", "written", "Connection refused", "hook on after", "GUEST OK",
	} {
		if !strings.Contains(strings.ReplaceAll(out, "\r", ""), want) {
			t.Errorf("the guest did not say %q:\n%s", want, out)
		}
	}
}

// bootGuest boots on q35. (On microvm, a busy host makes one boot in eight hang
// under TCG: the kernel's calibration of the TSC fails, and there is no HPET or
// ACPI timer to fall back on.)
func bootGuest(t *testing.T, qemu string, img *Image) string {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	start := time.Now()
	cmd := exec.CommandContext(ctx, qemu, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", img.Kernel, "-initrd", img.Initramfs, "-append", "console=ttyS0 quiet panic=-1",
		"-drive", "file="+img.Root+",format=raw,if=none,id=root,snapshot=on",
		"-device", "virtio-blk-pci,drive=root",
		"-netdev", "hubport,hubid=0,id=net", "-device", "virtio-net-pci,netdev=net",
		"-device", "virtio-serial-pci", "-device", "virtserialport,name=test",
		"-device", "virtio-balloon-pci",
	)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	t.Logf("guest ran %v", time.Since(start).Round(time.Millisecond))
	if err != nil {
		t.Fatalf("guest did not turn itself off within 60 s: %v\n%s", err, out.String())
	}
	for _, line := range strings.Split(out.String(), "\n") {
		if strings.HasPrefix(line, "uptime") || strings.HasPrefix(line, "GUEST") {
			t.Log(strings.TrimSpace(line))
		}
	}
	return out.String()
}
