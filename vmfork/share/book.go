package share

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// A book is what a relay knows of a session: as much as another session needs
// to be like it. It is written as replies come. It knows files by the names
// that led to them, and keeps up with its own client's changes of names; other
// clients' changes it finds out when it walks there again.
type book struct {
	hello *ninep.Tversion // as it was agreed, or nil
	fids  map[uint32]*bookFID
}

// An attachment is what a Tattach said.
type attachment struct {
	user, attach string
	uid          uint32
}

// A bookFID is a fid of the client's.
type bookFID struct {
	root attachment
	path string // below the root, each name after a slash
	file uint64 // the file's identity, a QID's path
	open bool
	// flags are those to open it with again: not to make or to cut it.
	flags uint32
	// lost is a fid whose file no path leads to, or which is none of a file.
	lost bool
	// dead is a fid that the present session does not have: requests about it
	// are answered with ESTALE.
	dead bool
}

// onceFlags are those of an open file that act when it is opened.
const onceFlags = ninep.OpenCreate | ninep.OpenExclusive | ninep.OpenTruncate

func newBook() book { return book{fids: map[uint32]*bookFID{}} }

func tagOf(message []byte) uint16      { return binary.LittleEndian.Uint16(message[5:]) }
func typeOf(message []byte) ninep.Type { return ninep.Type(message[4]) }

// parse is a message, or nil if it is malformed.
func parse(message []byte) ninep.Message {
	m, err := ninep.Decode(typeOf(message), message[ninep.HeaderSize:])
	if err != nil {
		return nil
	}
	return m
}

// Types whose replies are written into the book. Others are not even parsed.
var noted = func() (set [256]bool) {
	for _, m := range []ninep.Message{
		&ninep.Tversion{}, &ninep.Tauth{}, &ninep.Tattach{}, &ninep.Twalk{}, &ninep.Tlopen{}, &ninep.Tlcreate{},
		&ninep.Tclunk{}, &ninep.Tremove{}, &ninep.Trename{}, &ninep.Trenameat{}, &ninep.Tunlinkat{},
		&ninep.Txattrwalk{}, &ninep.Txattrcreate{},
	} {
		set[m.Type()] = true
	}
	return set
}()

// note writes down what a reply means. Malformed messages mean nothing. size is
// that of messages from now on, if it changed.
func (b *book) note(request, reply []byte) (size uint32) {
	if !noted[typeOf(request)] {
		return 0
	}
	answer := parse(reply)
	failed := answer == nil || answer.Type() != typeOf(request)+1
	switch m := parse(request).(type) {
	case *ninep.Tclunk:
		delete(b.fids, m.FID) // whatever the answer
	case *ninep.Tremove:
		f := b.fids[m.FID]
		delete(b.fids, m.FID)
		if f != nil && !failed {
			b.forget(f.root, f.path)
		}
	case ninep.Message:
		if !failed {
			return b.change(m, answer)
		}
	}
	return 0
}

// change is note for what succeeded.
func (b *book) change(m, answer ninep.Message) (size uint32) {
	switch m := m.(type) {
	case *ninep.Tversion:
		agreed := answer.(*ninep.Rversion)
		b.hello, b.fids = nil, map[uint32]*bookFID{}
		if agreed.Version != ninep.Version || agreed.MaxSize < minMessage {
			return 0
		}
		b.hello = &ninep.Tversion{MaxSize: min(agreed.MaxSize, MaxMessage), Version: agreed.Version}
		return b.hello.MaxSize
	case *ninep.Tauth:
		b.fids[m.AuthFID] = &bookFID{lost: true}
	case *ninep.Tattach:
		root := attachment{m.User, m.Attach, m.UID}
		b.fids[m.FID] = &bookFID{root: root, file: answer.(*ninep.Rattach).QID.Path, lost: m.AuthFID != ninep.NoFID}
	case *ninep.Twalk:
		b.walk(m, answer.(*ninep.Rwalk).QIDs)
	case *ninep.Tlopen:
		if f := b.fids[m.FID]; f != nil {
			f.open, f.flags, f.file = true, m.Flags&^onceFlags, answer.(*ninep.Rlopen).QID.Path
		}
	case *ninep.Tlcreate:
		if f := b.fids[m.FID]; f != nil {
			f.path += "/" + m.Name
			f.open, f.flags, f.file = true, m.Flags&^onceFlags, answer.(*ninep.Rlcreate).QID.Path
		}
	case *ninep.Trename:
		if f, to := b.fids[m.FID], b.fids[m.DirFID]; f != nil && to != nil {
			b.rename(f.root, f.path, to.path+"/"+m.Name)
		}
	case *ninep.Trenameat:
		if from, to := b.fids[m.OldDirFID], b.fids[m.NewDirFID]; from != nil && to != nil {
			b.rename(from.root, from.path+"/"+m.OldName, to.path+"/"+m.NewName)
		}
	case *ninep.Tunlinkat:
		if dir := b.fids[m.DirFID]; dir != nil {
			b.forget(dir.root, dir.path+"/"+m.Name)
		}
	case *ninep.Txattrwalk:
		b.fids[m.NewFID] = &bookFID{lost: true}
	case *ninep.Txattrcreate:
		b.fids[m.FID] = &bookFID{lost: true}
	}
	return 0
}

// walk enters the fid of a walk that came to its end.
func (b *book) walk(m *ninep.Twalk, found []ninep.QID) {
	from := b.fids[m.FID]
	if from == nil || len(found) != len(m.Names) {
		return
	}
	to := &bookFID{root: from.root, path: from.path, file: from.file, lost: from.lost}
	for i, name := range m.Names {
		if name == ".." {
			to.path = to.path[:max(0, strings.LastIndexByte(to.path, '/'))]
		} else {
			to.path += "/" + name
		}
		to.file = found[i].Path
	}
	b.fids[m.NewFID] = to
}

// under tells whether a path is a folder's, or leads through it, and what
// follows the folder.
func under(path, folder string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(path, folder)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// rename moves what is known at and below a path. What was at the new place is
// no more there, unless it is the same file.
func (b *book) rename(root attachment, from, to string) {
	if from == to {
		return
	}
	var moved uint64
	for _, f := range b.fids {
		if f.root.attach == root.attach && f.path == from {
			moved = f.file
		}
	}
	for _, f := range b.fids {
		if f.root.attach != root.attach {
			continue
		}
		if rest, ok := under(f.path, from); ok {
			f.path = to + rest
		} else if _, ok := under(f.path, to); ok && (moved == 0 || f.file != moved) {
			f.lost = true
		}
	}
}

// forget is for a path that was removed.
func (b *book) forget(root attachment, path string) {
	for _, f := range b.fids {
		if _, ok := under(f.path, path); ok && f.root.attach == root.attach {
			f.lost = true
		}
	}
}

// answer is the reply to a request about a dead fid, or nil for other requests.
// To close one is no error.
func (b *book) answer(request []byte) []byte {
	first, ok := firstFID(request)
	if !ok {
		return nil
	}
	t := typeOf(request)
	dead := b.isDead(first)
	if dead && (t == (&ninep.Tclunk{}).Type() || t == (&ninep.Tremove{}).Type()) {
		delete(b.fids, first)
		if t == (&ninep.Tclunk{}).Type() {
			return whole(tagOf(request), &ninep.Rclunk{})
		}
	}
	switch t {
	case (&ninep.Tlink{}).Type(), (&ninep.Trename{}).Type(), (&ninep.Trenameat{}).Type():
		switch m := parse(request).(type) { // which have a second one
		case *ninep.Tlink:
			dead = dead || b.isDead(m.FID)
		case *ninep.Trename:
			dead = dead || b.isDead(m.DirFID)
		case *ninep.Trenameat:
			dead = dead || b.isDead(m.NewDirFID)
		}
	}
	if !dead {
		return nil
	}
	return whole(tagOf(request), &ninep.Rlerror{Errno: uint32(unix.ESTALE)})
}

func (b *book) isDead(fid uint32) bool {
	f := b.fids[fid]
	return f != nil && f.dead
}

// firstFID is what all requests begin with that are about a file that is there.
func firstFID(request []byte) (uint32, bool) {
	switch typeOf(request) {
	case (&ninep.Tversion{}).Type(), (&ninep.Tauth{}).Type(), (&ninep.Tattach{}).Type(), (&ninep.Tflush{}).Type():
		return 0, false
	}
	if len(request) < ninep.HeaderSize+4 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(request[ninep.HeaderSize:]), true
}

// whole is a message without data as it goes over the wire.
func whole(tag uint16, m ninep.Message) []byte {
	message, _ := ninep.Encode(nil, tag, m)
	return message
}
