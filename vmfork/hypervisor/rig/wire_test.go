package rig

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestFrames(t *testing.T) {
	var port bytes.Buffer
	long := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	if n, err := (framer{&sync.Mutex{}, &port, frameStderr}).Write(long); n != len(long) || err != nil {
		t.Fatalf("wrote %d bytes of %d: %v", n, len(long), err)
	}
	if err := writeFrame(&port, frameStatus, nil); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		kind, content, err := readFrame(&port)
		if err != nil {
			t.Fatal(err)
		}
		if kind == frameStatus {
			break
		}
		if kind != frameStderr || len(content) > maxFrame {
			t.Errorf("a frame %q of %d bytes", kind, len(content))
		}
		got = append(got, content...)
	}
	if !bytes.Equal(got, long) {
		t.Errorf("%d bytes arrived, not those %d that were sent", len(got), len(long))
	}
	if _, _, err := readFrame(&port); !errors.Is(err, io.EOF) {
		t.Errorf("after the last: %v", err)
	}
	for bad, says := range map[string]string{
		"o\x00\x00\x00":             io.ErrUnexpectedEOF.Error(),
		"o\x00\x00\x00\x02x":        io.ErrUnexpectedEOF.Error(),
		"o\x7f\xff\xff\xff":         "longer than",
		"Welcome to emergency mode": "begins with 'W'",
	} {
		if _, _, err := readFrame(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is %v, want %q", bad, err, says)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("o\x00\x00\x00\x02hi"))
	f.Add([]byte("s\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		kind, content, err := readFrame(bytes.NewReader(in))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := writeFrame(&out, kind, content); err != nil || !bytes.HasPrefix(in, out.Bytes()) {
			t.Errorf("%q is %q, %q, written as %q (%v)", in, kind, content, out.Bytes(), err)
		}
	})
}

// What is packed is unpacked under its own name, folders with what is in them;
// what is not there is not missed.
func TestPack(t *testing.T) {
	from, into := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{"one": "1", "folder/two": "22", "folder/below/three": "", "other/four": "4"} {
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(from, "folder/link")); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := pack(&archive, []string{from + "/one", from + "/folder", from + "/missing"}); err != nil {
		t.Fatal(err)
	}
	if err := unpack(&archive, into); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"one": "1", "folder/two": "22", "folder/below/three": ""} {
		if b, err := os.ReadFile(filepath.Join(into, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q (%v), want %q", name, b, err, want)
		}
	}
	for _, name := range []string{"other", "missing", "folder/link"} {
		if _, err := os.Lstat(filepath.Join(into, name)); err == nil {
			t.Errorf("%s came along", name)
		}
	}
}

// However an archive is made, nothing is written outside its folder.
func FuzzUnpack(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		f.Fatal(err)
	}
	var archive bytes.Buffer
	if err := pack(&archive, []string{dir}); err != nil {
		f.Fatal(err)
	}
	f.Add(archive.Bytes())
	f.Add(bytes.ReplaceAll(archive.Bytes(), []byte(filepath.Base(dir)), []byte("..")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		outside := t.TempDir()
		into := filepath.Join(outside, "into")
		if err := os.Mkdir(into, 0o755); err != nil {
			t.Fatal(err)
		}
		unpack(bytes.NewReader(in), into)
		if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
			t.Errorf("%v is beside the folder (%v)", names, err)
		}
	})
}
