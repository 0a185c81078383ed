package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"
)

const (
	manifestName    = "manifest.json"
	manifestVersion = 1
	maxManifest     = 1 << 20
)

// A Manifest is what a cache entry says of itself.
type Manifest struct {
	Version   int       `json:"version"`
	Key       string    `json:"key"`     // SHA-256, hexadecimal; the folder has its first 12 digits
	Source    string    `json:"source"`  // "machine" or "disk"
	Program   string    `json:"program"` // for which the image was first made, "a shell" and what came with it, or the disk image's path
	Kind      string    `json:"kind,omitempty"`
	Kernel    string    `json:"kernel"` // release
	Created   time.Time `json:"created"`
	Files     Sizes     `json:"files"`
	Used      int64     `json:"used"` // bytes in use in the root file system; 0 if not known
	UCX       bool      `json:"ucx"`  // its program needs [Progress]
	Libraries []string  `json:"libraries,omitempty"`
}

// Sizes are the files' sizes in bytes, holes included.
type Sizes struct {
	Kernel    int64 `json:"vmlinuz"`
	Initramfs int64 `json:"initramfs"`
	Root      int64 `json:"root.img"`
}

var keyPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// parseManifest reads a manifest and checks it. Errors say what is wrong with it.
func parseManifest(b []byte) (*Manifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("read manifest: larger than %d bytes", maxManifest)
	}
	// The version first: a newer one may differ in anything else.
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if v.Version != manifestVersion {
		return nil, fmt.Errorf("read manifest: version %d, this mpirun-sf knows %d", v.Version, manifestVersion)
	}
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("read manifest: something follows it")
	}
	switch {
	case !keyPattern.MatchString(m.Key):
		return nil, errors.New("read manifest: no key")
	case m.Source != "machine" && m.Source != "disk":
		return nil, fmt.Errorf("read manifest: unknown source %q", m.Source)
	case m.Files.Kernel <= 0 || m.Files.Initramfs <= 0 || m.Files.Root <= 0 || m.Used < 0 || m.Used > m.Files.Root:
		return nil, errors.New("read manifest: impossible sizes")
	}
	return &m, nil
}
