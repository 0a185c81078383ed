package debian

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMakeOnce(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	if _, err := Open(cache, "it-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty cache: %v", err)
	}
	broken := errors.New("broken")
	if _, err := Make(cache, "it-1", func(dir string) error {
		return errors.Join(broken, os.WriteFile(filepath.Join(dir, "half"), nil, 0o644))
	}); !errors.Is(err, broken) {
		t.Errorf("a build that fails: %v", err)
	}
	if _, err := Open(cache, "it-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what failed was kept: %v", err)
	}
	made := 0
	for range 2 {
		dir, err := Make(cache, "it-1", func(dir string) error {
			made++
			if _, err := os.Stat(filepath.Join(dir, "half")); err == nil {
				t.Error("a build begins with what another one has left")
			}
			return nil
		})
		if opened, openErr := Open(cache, "it-1"); err != nil || openErr != nil || opened != dir {
			t.Errorf("made %s (%v), opened %s (%v)", dir, err, opened, openErr)
		}
	}
	if made != 1 {
		t.Errorf("made %d times", made)
	}
}

func TestRunSaysWhatFailed(t *testing.T) {
	dir := t.TempDir()
	var told []string
	err := Run(t.Context(), dir, []Step{
		{Name: "first", Dir: dir, Program: "true"},
		{Name: "second", Dir: dir, Program: "sh", Args: []string{"-c", "for i in 1 2 3 4 5 6 7; do echo line $i; done; exit 3"}},
		{Name: "third", Dir: dir, Program: "touch", Args: []string{"third"}},
	}, func(format string, args ...any) { told = append(told, args[0].(string)) })
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.HasSuffix(err.Error(), "line 3\nline 4\nline 5\nline 6\nline 7") {
		t.Errorf("%v", err)
	}
	if strings.Join(told, " ") != "first second" {
		t.Errorf("told of %v", told)
	}
	if _, err := os.Stat(filepath.Join(dir, "third")); err == nil {
		t.Error("it went on")
	}
}

func TestUnpackPristine(t *testing.T) {
	dir := t.TempDir()
	s := Source{Name: "it", Version: "1.2a-3", Pristine: true}
	if s.Upstream() != "1.2a" || (Source{Version: "1-2-3"}).Upstream() != "1-2" || (Source{Version: "4"}).Upstream() != "4" {
		t.Errorf("%s without what Debian adds is %s", s.Version, s.Upstream())
	}
	if err := s.unpack(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "0 archives") {
		t.Errorf("without an archive: %v", err)
	}
	theirs := filepath.Join(dir, "It-OneTwo")
	if err := os.Mkdir(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(theirs, "configure"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-czf", filepath.Join(dir, "it_1.2a.orig.tar.gz"), "-C", dir, "It-OneTwo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := s.unpack(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.Folder(dir), "configure")); err != nil {
		t.Error(err)
	}
}
