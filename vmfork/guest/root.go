package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 4096

	// rootLabel is the file system's label.
	rootLabel = "mpirun-sf"

	// spareInodes is how many files may be created in a root, temporary ones of
	// ranks for instance.
	spareInodes = 8192

	// buildTimeout bounds each program that helps to build; they take a second.
	buildTimeout = 5 * time.Minute
)

// BuildRoot makes an ext4 file system image at dst, which must not exist, with
// what spec asks for. dst's folder gets a staging folder for the time being, so
// it needs room for everything twice. It returns the bytes in use in the file
// system; the rest of the file, spec.Free and a little more, is a hole.
func BuildRoot(ctx context.Context, dst string, spec Spec) (used int64, err error) {
	p, err := newPlan(spec)
	if err != nil {
		return 0, err
	}
	used, err = p.build(ctx, dst)
	return used, outOfSpace(err, filepath.Dir(dst))
}

// build is BuildRoot for a plan.
func (p *plan) build(ctx context.Context, dst string) (used int64, err error) {
	staging, err := os.MkdirTemp(filepath.Dir(dst), "staging-")
	if err != nil {
		return 0, fmt.Errorf("make staging folder: %w", err)
	}
	defer os.RemoveAll(staging)
	defer func() {
		if err != nil {
			os.Remove(dst)
		}
	}()
	size, inodes, err := p.stage(ctx, staging)
	if err != nil {
		return 0, err
	}
	return p.mkfs(ctx, dst, staging, size, inodes)
}

// stage lays the root out as folders and files. It returns the bytes and inodes
// that they will take.
func (p *plan) stage(ctx context.Context, staging string) (size, inodes int64, err error) {
	// What --with names may be large: no disk is filled up just to find that out.
	if err := needSpace(staging, p.tree.bytes()); err != nil {
		return 0, 0, fmt.Errorf("stage root: %w", err)
	}
	if err := os.Chmod(staging, 0o755); err != nil { // becomes the root's mode
		return 0, 0, fmt.Errorf("stage root: %w", err)
	}
	for _, m := range p.made {
		if m.dir {
			if err := stageDir(staging, m); err != nil {
				return 0, 0, fmt.Errorf("stage root: %w", err)
			}
		}
	}
	for _, f := range p.tree.files() {
		if err := ctx.Err(); err != nil {
			return 0, 0, fmt.Errorf("stage root: %w", err)
		}
		if err := stageFile(staging, f); err != nil {
			return 0, 0, fmt.Errorf("stage root: %w", err)
		}
	}
	for _, m := range p.made {
		if !m.dir {
			if err := stageMade(staging, m); err != nil {
				return 0, 0, fmt.Errorf("stage root: %w", err)
			}
		}
	}
	if err := p.stageLinkerCache(ctx, staging); err != nil {
		return 0, 0, err
	}
	err = filepath.WalkDir(staging, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		inodes++
		if d.Type().IsRegular() {
			size += (info.Size() + blockSize - 1) / blockSize * blockSize
		} else {
			size += blockSize // folders; a link takes none, but this is an estimate
		}
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("measure staged root: %w", err)
	}
	return size, inodes, nil
}

func stageDir(staging string, m made) error {
	path := filepath.Join(staging, m.path)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	// Without root, everything staged belongs to the user, the home folder too.
	if os.Geteuid() == 0 {
		if err := os.Chown(path, m.uid, m.gid); err != nil {
			return err
		}
	}
	return unix.Chmod(path, m.mode) // os.Chmod would have the sticky bit elsewhere
}

// stageFile copies a file of the machine. Owner and mode are made harmless:
// root's, readable for all, never set-uid.
func stageFile(staging string, f File) error {
	path := filepath.Join(staging, f.Path)
	if f.Dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if f.Link != "" {
		return os.Symlink(f.Link, path)
	}
	mode := fs.FileMode(0o644)
	if f.Mode&0o111 != 0 {
		mode = 0o755
	}
	if err := copyFile(path, f.Path, mode); err != nil {
		return err
	}
	now, err := os.Stat(f.Path)
	if err != nil {
		return err
	}
	if now.Size() != f.Size || !now.ModTime().Equal(f.ModTime) {
		return fmt.Errorf("%s changed while the guest image was made from it: start again", f.Path)
	}
	return os.Chtimes(path, f.ModTime, f.ModTime)
}

func stageMade(staging string, m made) error {
	path := filepath.Join(staging, m.path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if m.link != "" {
		return os.Symlink(m.link, path)
	}
	if err := os.WriteFile(path, []byte(m.content), 0o600); err != nil {
		return err
	}
	return unix.Chmod(path, m.mode)
}

// stageLinkerCache makes /etc/ld.so.cache for the libraries in the root. Where
// ldconfig is missing (no glibc) or fails, the guest's linker finds what lies in
// the default folders, and the configuration names the others.
func (p *plan) stageLinkerCache(ctx context.Context, staging string) error {
	var conf strings.Builder
	for _, d := range ldConf("/etc/ld.so.conf") {
		if _, err := os.Stat(filepath.Join(staging, d)); err == nil {
			fmt.Fprintln(&conf, d)
		}
	}
	if err := os.WriteFile(filepath.Join(staging, "etc/ld.so.conf"), []byte(conf.String()), 0o644); err != nil {
		return fmt.Errorf("stage root: %w", err)
	}
	cctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	// -X: the links are the machine's already.
	_, err := runTool(cctx, "", "ldconfig", "-X", "-r", staging)
	if ctx.Err() != nil || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("make the guest's linker cache: %w", err)
	}
	os.RemoveAll(filepath.Join(staging, "var/cache"))
	return nil
}

// mkfs turns the staging folder into a file system at dst.
//
// No journal and no checksums: the disk vanishes with its clone, so a journal
// would only dirty pages, each of which a fork has to copy. The inode tables are
// written now (as holes), or the guest would do it in the background, again
// dirtying pages.
func (p *plan) mkfs(ctx context.Context, dst, staging string, size, inodes int64) (used int64, err error) {
	inodes += spareInodes
	meta := inodes*256 + 4<<20
	total := size + size/64 + meta + p.free
	total = (total + 1<<20 - 1) >> 20 << 20
	f, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, fmt.Errorf("make root: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(total); err != nil {
		return 0, fmt.Errorf("make root: %w", err)
	}
	// mke2fs notices a full disk late, and not each version says so.
	if err := needSpace(filepath.Dir(dst), size); err != nil {
		return 0, err
	}
	args := []string{
		"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockSize), "-I", "256", "-m", "0",
		"-N", strconv.FormatInt(inodes, 10), "-L", rootLabel,
		"-O", "none,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_index,dir_nlink,extra_isize",
		"-E", "lazy_itable_init=0,root_owner=0:0,hash_seed=6d706972-756e-2d73-6620-677565737420",
		"-d", staging, dst,
	}
	mctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	if _, err := runTool(mctx, "", "mke2fs", args...); err != nil {
		if _, e := lookTool("mke2fs"); e != nil {
			return 0, fmt.Errorf("make root: %w: install e2fsprogs", e)
		}
		return 0, fmt.Errorf("make root: %w", err)
	}
	// Allocation is delayed; a full disk should show now, not in a guest.
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("make root: %w", err)
	}
	sb := make([]byte, superblockSize)
	if _, err := f.ReadAt(sb, superblockOffset); err != nil {
		return 0, fmt.Errorf("check root: %w", err)
	}
	ext, err := parseSuperblock(sb)
	if err != nil {
		return 0, fmt.Errorf("check root: %w", err)
	}
	return ext.used(), nil
}

// needSpace fails as a full disk does if fewer bytes than that are free in dir.
func needSpace(dir string, bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil // then it shows when writing
	}
	if int64(st.Bavail)*st.Bsize < bytes {
		return fmt.Errorf("%d MB needed: %w", bytes>>20, unix.ENOSPC)
	}
	return nil
}
