package guest

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxModule bounds a module's uncompressed size; the largest of a full Debian
// kernel (amdgpu) has 20 MB.
const maxModule = 128 << 20

// moduleBytes reads a module and uncompresses it: init_module in the guest
// should work with kernels that cannot do that by themselves.
func moduleBytes(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	var r io.Reader
	switch {
	case bytes.HasPrefix(b, []byte("\x7fELF")):
		return b, nil
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		if r, err = gzip.NewReader(bytes.NewReader(b)); err != nil {
			return nil, fmt.Errorf("uncompress module %s: %w", path, err)
		}
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("uncompress module %s: %w", path, err)
		}
		defer d.Close()
		r = d
	case bytes.HasPrefix(b, []byte("\xfd7zXZ\x00")):
		// No library for xz is among ours; the tool is on every machine whose
		// kernel package uses it.
		cmd := exec.Command("xz", "--decompress", "--stdout")
		cmd.Stdin = bytes.NewReader(b)
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("uncompress module %s with xz (install xz-utils if it is missing): %w", path, err)
		}
		r = bytes.NewReader(out)
	default:
		return nil, fmt.Errorf("read module %s: neither ELF nor a known compression", path)
	}
	out, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("uncompress module %s: %w", path, err)
	}
	if len(out) > maxModule {
		return nil, fmt.Errorf("uncompress module %s: larger than %d MB", path, maxModule>>20)
	}
	return out, nil
}

// moduleDepends reads the names of the modules that path needs from its ELF
// section .modinfo.
func moduleDepends(path string) ([]string, error) {
	b, err := moduleBytes(path)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", path, err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("read module %s: no .modinfo section", path)
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", path, err)
	}
	return parseModinfo(info)["depends"], nil
}

// parseModinfo reads a .modinfo section: NUL-terminated "key=value" records. The
// values of "depends" are split at commas and normalised as module names; a key
// may occur many times. It never returns nil for "depends", so that a caller can
// tell "none" from "not read".
func parseModinfo(b []byte) map[string][]string {
	info := map[string][]string{"depends": {}}
	for rec := range bytes.SplitSeq(b, []byte{0}) {
		key, value, ok := strings.Cut(string(rec), "=")
		if !ok || key == "" {
			continue
		}
		if key != "depends" {
			info[key] = append(info[key], value)
			continue
		}
		for name := range strings.SplitSeq(value, ",") {
			if name = strings.ReplaceAll(strings.TrimSpace(name), "-", "_"); name != "" {
				info[key] = append(info[key], name)
			}
		}
	}
	return info
}
