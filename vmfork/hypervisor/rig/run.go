package rig

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"
)

// Command is what runs in a rig, as its root.
type Command struct {
	Args []string `json:"args"` // the program's path, or its name in /usr/bin and the like, and its arguments
	Env  []string `json:"env"`  // besides PATH, HOME, TMPDIR
	Dir  string   `json:"dir"`  // working directory, "" for /
	// Bring are files and folders that are brought back when it has ended;
	// what is not there is not. They arrive below Rig.Run's folder, under their
	// own last names.
	Bring []string `json:"bring"`
}

// Result is how a command ended.
type Result struct {
	// Status is as a shell would say it: 128 and the signal for who died of one.
	Status int           `json:"status"`
	Took   time.Duration `json:"took"`  // by the rig's clock
	Error  string        `json:"error"` // why it could not be run, or its files not be brought
}

// Run runs a command and passes on what it prints while it runs. Files of
// Command.Bring are written below the folder into. The error says what went
// wrong with the rig, or that the command could not be run; that it failed is
// in Result.Status. After a context has ended the rig is of no more use.
func (r *Rig) Run(ctx context.Context, c Command, stdout, stderr io.Writer, into string) (Result, error) {
	res, err := r.run(ctx, c, stdout, stderr, into)
	if err != nil {
		return res, fmt.Errorf("run %s in the rig: %w", path.Base(c.Args[0]), err)
	}
	return res, nil
}

func (r *Rig) run(ctx context.Context, c Command, stdout, stderr io.Writer, into string) (res Result, err error) {
	order, err := json.Marshal(c)
	if err != nil {
		return res, err
	}
	if _, err := r.port.Write(append(order, '\n')); err != nil {
		return res, r.explain(err)
	}
	archive, files := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := unpack(archive, into)
		archive.CloseWithError(err) // more is of no use
		unpacked <- err
	}()
	defer func() {
		files.Close()
		if e := <-unpacked; err == nil && e != nil {
			err = fmt.Errorf("unpack what it brings: %w", e)
		}
	}()
	for {
		f, err := r.next(ctx, "it to end")
		if err != nil {
			return res, err
		}
		switch f.kind {
		case frameStdout:
			_, err = stdout.Write(f.content)
		case frameStderr:
			_, err = stderr.Write(f.content)
		case frameFiles:
			files.Write(f.content) // its error is unpack's
		case frameStatus:
			if err := json.Unmarshal(f.content, &res); err != nil {
				return res, fmt.Errorf("read its status: %w", err)
			}
			if res.Error != "" {
				return res, errors.New(res.Error)
			}
			return res, nil
		default:
			err = fmt.Errorf("a frame %q came in between", f.kind)
		}
		if err != nil {
			return res, err
		}
	}
}

// unpack writes an archive's files and folders below into. Nothing else is in
// it, and nothing of it gets elsewhere. An archive that is empty is none.
func unpack(r io.Reader, into string) error {
	t := tar.NewReader(r)
	var root *os.Root
	for {
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if root == nil {
			if root, err = os.OpenRoot(into); err != nil {
				return err
			}
			defer root.Close()
		}
		name := filepath.FromSlash(path.Clean(h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeReg:
			err = unpackFile(root, name, t)
		default:
			err = fmt.Errorf("%s is neither a file nor a folder", h.Name)
		}
		if err != nil {
			return err
		}
	}
}

func unpackFile(root *os.Root, name string, content io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

// pack writes what lies at paths as an archive, each under its last name.
func pack(w io.Writer, paths []string) error {
	t := tar.NewWriter(w)
	for _, p := range paths {
		err := filepath.WalkDir(p, func(at string, d fs.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			below, err := filepath.Rel(filepath.Dir(p), at)
			if err != nil {
				return err
			}
			if d.IsDir() {
				return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: below + "/", Mode: 0o755})
			}
			if !d.Type().IsRegular() {
				return nil
			}
			content, err := os.ReadFile(at)
			if err != nil {
				return err
			}
			if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: below, Mode: 0o644, Size: int64(len(content))}); err != nil {
				return err
			}
			_, err = t.Write(content)
			return err
		})
		if err != nil {
			return err
		}
	}
	return t.Close()
}
