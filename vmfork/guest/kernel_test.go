package guest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
)

func names(ms []Module) []string {
	var out []string
	for _, m := range ms {
		out = append(out, m.Name)
	}
	return out
}

func TestFindKernel(t *testing.T) {
	k := testKernel(t)
	order := names(k.Modules)
	t.Logf("%s: %s", k.Release, strings.Join(order, " "))
	for _, pair := range [][2]string{
		{"virtio_ring", "virtio"}, {"virtio", "virtio_pci"}, {"virtio_pci_modern_dev", "virtio_pci"},
		{"net_failover", "virtio_net"}, {"9pnet", "9p"}, {"netfs", "9p"}, {"crc32c_generic", "ext4"}, {"jbd2", "ext4"},
	} {
		a, b := slices.Index(order, pair[0]), slices.Index(order, pair[1])
		if b < 0 || a > b {
			t.Errorf("%s is not before %s", pair[0], pair[1])
		}
	}
	// What is kept of it is as good, and found again without the package.
	kernels := t.TempDir()
	if err := k.keep(filepath.Join(kernels, k.Release)); err != nil {
		t.Fatal(err)
	}
	again := keptKernel(kernels)
	if again == nil || again.Release != k.Release || !slices.Equal(names(again.Modules), order) {
		t.Errorf("kept: %+v", again)
	}
	if k := keptKernel(kernels, "ext4"); k == nil || !slices.Equal(names(k.Modules), order) {
		t.Errorf("kept, with a module more that is among the usual ones: %+v", k)
	}
	if k := keptKernel(kernels, "no_such_module"); k != nil {
		t.Errorf("found with a module that was not kept: %+v", k)
	}
}

// Whoever wants more modules gets them after the usual ones, each after what it
// needs; and what was kept with them is as good for whoever does not want them.
func TestMoreModules(t *testing.T) {
	root := fakeRoot(t, "6.1.0-9-amd64", fullDep+"kernel/kvm-amd.ko: kernel/kvm.ko\nkernel/kvm.ko:\n", "")
	usual, err := kernelBelow(root)
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernelBelow(root, "kvm_amd")
	if err != nil || !slices.Equal(names(k.Modules), append(names(usual.Modules), "kvm", "kvm_amd")) {
		t.Fatalf("%+v, %v", k, err)
	}
	if _, err := kernelBelow(root, "kvm_intel"); err == nil || !strings.Contains(err.Error(), "has no module kvm_intel") {
		t.Errorf("with a module that is not there: %v", err)
	}
	cache := t.TempDir()
	if err := k.Keep(cache); err != nil {
		t.Fatal(err)
	}
	kernels := filepath.Join(cache, "kernels")
	if kept := keptKernel(kernels); kept == nil || !slices.Equal(names(kept.Modules), names(usual.Modules)) {
		t.Errorf("kept: %+v", kept)
	}
	if kept := keptKernel(kernels, "kvm_amd"); kept == nil || !slices.Equal(names(kept.Modules), names(k.Modules)) {
		t.Errorf("kept, with more: %+v", kept)
	}
}

// fullDep is a modules.dep with everything that is required.
const fullDep = `kernel/virtio/virtio_ring.ko:
kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko
kernel/virtio/virtio_pci.ko.xz: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
kernel/virtio_blk.ko: kernel/virtio/virtio.ko
kernel/virtio_console.ko: kernel/virtio/virtio.ko
kernel/virtio_net.ko: kernel/virtio/virtio.ko
kernel/virtio_balloon.ko: kernel/virtio/virtio.ko
kernel/virtio-rng.ko:
kernel/9pnet.ko:
kernel/9pnet_fd.ko: kernel/9pnet.ko
kernel/9p.ko: kernel/9pnet.ko kernel/netfs.ko
kernel/netfs.ko:
kernel/ext4.ko: kernel/jbd2.ko
kernel/jbd2.ko:
`

func fakeRoot(t *testing.T, release, dep, builtin string) string {
	t.Helper()
	root := t.TempDir()
	write(t, filepath.Join(root, "boot", "vmlinuz-"+release), "kernel", 0o600)
	mods := filepath.Join(root, "lib/modules", release)
	write(t, filepath.Join(mods, "modules.dep"), dep, 0o600)
	write(t, filepath.Join(mods, "modules.builtin"), builtin, 0o600)
	for line := range strings.Lines(dep) {
		file, _, _ := strings.Cut(line, ":")
		write(t, filepath.Join(mods, file), "module", 0o600)
	}
	return root
}

func TestKernelBelow(t *testing.T) {
	without := func(name string) string {
		var b strings.Builder
		for line := range strings.Lines(fullDep) {
			if !strings.Contains(strings.Split(line, ":")[0], "/"+name+".ko") {
				b.WriteString(line)
			}
		}
		return b.String()
	}
	tests := []struct {
		name, release, dep, builtin string
		err                         string
	}{
		{name: "full", release: "6.1.0-9-amd64", dep: fullDep},
		{name: "built in", release: "6.1.0-9-amd64", dep: without("ext4"), builtin: "kernel/fs/ext4/ext4.ko\n"},
		{name: "cloud", release: "6.1.0-9-cloud-amd64", dep: without("9p"), err: "kernel 6.1.0-9-cloud-amd64 has no module 9p (it is a cloud kernel)"},
		{name: "no 9pnet_fd", release: "6.1.0-9-amd64", dep: without("9pnet_fd"), err: "has no module 9pnet_fd"},
		{name: "9pnet_fd before its time", release: "5.10.0-28-amd64", dep: without("9pnet_fd")},
		{name: "a dependency is missing", release: "6.1.0", dep: without("jbd2"), err: "has no module jbd2"},
		{name: "circle", release: "6.1.0", dep: strings.Replace(fullDep, "jbd2.ko:\n", "jbd2.ko: kernel/ext4.ko\n", 1), err: "depends on itself"},
		{name: "damaged", release: "6.1.0", dep: "nonsense\n", err: "line 1 has no colon"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k, err := kernelBelow(fakeRoot(t, tt.release, tt.dep, tt.builtin))
			if tt.err == "" && (err != nil || k.Release != tt.release) {
				t.Errorf("got %+v, %v", k, err)
			}
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
	root := fakeRoot(t, "6.1.0-9-amd64", fullDep, "")
	for _, r := range []string{"6.1.0-10-amd64", "6.1.0-100-cloud-amd64"} { // newer, without modules
		write(t, filepath.Join(root, "boot", "vmlinuz-"+r), "kernel", 0o600)
	}
	if k, err := kernelBelow(root); err != nil || k.Release != "6.1.0-9-amd64" {
		t.Errorf("newest with modules: %+v, %v", k, err)
	}
	if _, err := kernelBelow(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no kernel in") {
		t.Errorf("empty root: %v", err)
	}
}

func TestCompareReleases(t *testing.T) {
	sorted := []string{"5.10.0-28-amd64", "6.1", "6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-56-cloud-amd64", "6.12.0+deb13-amd64", "6.12.57+deb13-amd64", "6.100"}
	for i := range sorted {
		for j := range sorted {
			if got := compareReleases(sorted[i], sorted[j]); got > 0 != (i > j) || got < 0 != (i < j) {
				t.Errorf("%s, %s: %d", sorted[i], sorted[j], got)
			}
		}
	}
}

func TestParseDepends(t *testing.T) {
	for out, want := range map[string]string{
		"linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n":                                      "linux-image-6.1.0-56-amd64",
		"linux-image-amd64\n  Depends: linux-base\n |Depends: linux-image-6.12.57+deb13-amd64\n":          "linux-image-6.12.57+deb13-amd64",
		"x\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: linux-image-6.1.0-56-amd64\n":        "",
		"x\n  Depends: linux-image-6.*-amd64\n  Depends: linux-image-amd64\n  Depends: <linux-image-6>\n": "",
		"": "",
	} {
		if got := parseDepends(out); got != want {
			t.Errorf("%q: %q, want %q", out, got, want)
		}
	}
}

// A machine without apt gets one line that says what to install.
func TestNoKernelAnywhere(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := fetchKernel(t.Context(), t.TempDir(), func(string) {})
	if !errors.Is(err, errNoPackage) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "apt install linux-image-amd64") {
		t.Errorf("got %v", err)
	}
}

func TestModuleBytes(t *testing.T) {
	dir := t.TempDir()
	const module = "\x7fELF and so on"
	var gz, zst bytes.Buffer
	w := gzip.NewWriter(&gz)
	io.WriteString(w, module)
	w.Close()
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(z, module)
	z.Close()
	cmd := exec.Command(need(t, "xz", "xz-utils"), "-c")
	cmd.Stdin = strings.NewReader(module)
	xz, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"m.ko": module, "m.ko.gz": gz.String(), "m.ko.zst": zst.String(), "m.ko.xz": string(xz)} {
		b, err := moduleBytes(write(t, filepath.Join(dir, name), content, 0o600))
		if err != nil || string(b) != module {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if name == "m.ko" {
			content = "else"
		} else {
			content = content[:len(content)-5]
		}
		if b, err := moduleBytes(write(t, filepath.Join(dir, "bad-"+name), content, 0o600)); err == nil {
			t.Errorf("damaged %s: %q", name, b)
		}
	}
}

// Without a modules.dep, as in a package that was unpacked, the modules themselves
// say what they need.
func TestModulesWithoutDepmod(t *testing.T) {
	k := testKernel(t)
	dir := t.TempDir()
	for _, m := range k.Modules {
		if err := copyFile(filepath.Join(dir, filepath.Base(m.Path)), m.Path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(k.dir, "modules.builtin")); err == nil {
		write(t, filepath.Join(dir, "modules.builtin"), string(b), 0o600)
	}
	m, err := readModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.deps["virtio_pci"]; !slices.Contains(got, "virtio_ring") {
		t.Errorf("virtio_pci needs %v", got)
	}
	order, err := m.order(k.Release)
	if err != nil || len(order) != len(k.Modules) {
		t.Errorf("%v, %v", names(order), err)
	}
}

func FuzzParseModinfo(f *testing.F) {
	f.Add([]byte("license=GPL\x00depends=jbd2,mbcache, crc16\x00softdep=pre: crypto-crc32c\x00\x00name=ext4\x00"))
	f.Add([]byte("depends=\x00depends=a-b"))
	f.Add([]byte("=\x00depends"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info := parseModinfo(b)
		if info["depends"] == nil {
			t.Error("no depends")
		}
		for _, d := range info["depends"] {
			if d == "" || strings.ContainsAny(d, ",-\x00") {
				t.Errorf("%q needs %q", b, d)
			}
		}
	})
}

func FuzzParseModulesDep(f *testing.F) {
	f.Add(fullDep)
	f.Add("a.ko: b.ko\nb.ko: a.ko\n")
	f.Add(":::\n# x\n/abs/x.ko:")
	f.Fuzz(func(t *testing.T, text string) {
		m := &modules{path: map[string]string{}, deps: map[string][]string{}, builtin: map[string]bool{}}
		if m.parseDep("/dir", []byte(text)) == nil {
			m.order("6.1.0") // must end
		}
	})
}

func TestInitramfs(t *testing.T) {
	k := testKernel(t)
	agent := testAgent(t)
	var b bytes.Buffer
	if err := WriteInitramfs(&b, agent, k); err != nil {
		t.Fatal(err)
	}
	t.Logf("initramfs: %d KB", b.Len()>>10)
	content := map[string][]byte{}
	r := cpio.NewReader(bytes.NewReader(b.Bytes()))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Guid != 0 {
			t.Errorf("%s belongs to %d:%d", h.Name, h.Uid, h.Guid)
		}
		if content[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if h.Name == "init" && h.Mode.Perm() != 0o755 {
			t.Errorf("init has mode %o", h.Mode.Perm())
		}
	}
	if !bytes.Equal(content["init"], readFile(t, agent)) {
		t.Error("init is not the agent")
	}
	list := strings.Fields(string(content["modules"]))
	if len(list) != len(k.Modules) {
		t.Errorf("%d modules listed, want %d", len(list), len(k.Modules))
	}
	for _, path := range list {
		if !bytes.HasPrefix(content[path[1:]], []byte("\x7fELF")) {
			t.Errorf("%s is no module", path)
		}
	}
	var again bytes.Buffer
	if err := WriteInitramfs(&again, agent, k); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Errorf("the same input gives another archive: %v", err)
	}
}
