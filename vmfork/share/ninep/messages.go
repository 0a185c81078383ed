package ninep

// Version is the name of the dialect.
const Version = "9P2000.L"

const (
	NoFID   = ^uint32(0) // afid of an attach without authentication
	NoTag   = ^uint16(0) // tag of Tversion
	MaxWalk = 16         // names in one Twalk
)

// A QID is the server's identity of a file.
type QID struct {
	Type    QIDType
	Version uint32 // changes with the contents
	Path    uint64 // unique to the file, as an inode number
}

// A QIDType is the kind of a file in a QID.
type QIDType uint8

const (
	TypeRegular QIDType = 0
	TypeSymlink QIDType = 0x02
	TypeDir     QIDType = 0x80
)

// Time is seconds and nanoseconds since 1970.
type Time struct{ Sec, Nsec uint64 }

// Open flags, as those of Linux on most machines. Flags that are not here mean nothing to a server.
const (
	OpenReadOnly  = 0
	OpenWriteOnly = 0o1
	OpenReadWrite = 0o2
	OpenAccess    = 0o3 // mask of the three
	OpenCreate    = 0o100
	OpenExclusive = 0o200
	OpenTruncate  = 0o1000
	OpenAppend    = 0o2000
	OpenDSync     = 0o10000
	OpenDirectory = 0o200000
	OpenSync      = 0o4000000
)

// GetattrBasic is the bits of Rgetattr.Valid for all that stat(2) has.
const GetattrBasic = 0x7ff

// Bits of Tsetattr.Valid. A time without its Set bit is the server's present.
const (
	SetMode     = 0x1
	SetUID      = 0x2
	SetGID      = 0x4
	SetSize     = 0x8
	SetAtime    = 0x10
	SetMtime    = 0x20
	SetCtime    = 0x40
	SetAtimeSet = 0x80
	SetMtimeSet = 0x100
)

// UnlinkDir is the flag of Tunlinkat that means rmdir.
const UnlinkDir = 0x200

// Types, the flag and the status of Tlock and Tgetlock.
const (
	LockRead   = 0
	LockWrite  = 1
	LockUnlock = 2

	LockBlock = 1

	LockSuccess = 0
	LockBlocked = 1
	LockError   = 2
	LockGrace   = 3
)

type (
	Rlerror struct{ Errno uint32 }

	Tstatfs struct{ FID uint32 }
	Rstatfs struct {
		Kind, BlockSize                           uint32
		Blocks, Free, Available, Files, FilesFree uint64
		FSID                                      uint64
		NameLength                                uint32
	}

	Tlopen struct{ FID, Flags uint32 }
	Rlopen struct {
		QID    QID
		IOUnit uint32 // bytes; 0 is as much as fits
	}

	Tlcreate struct {
		FID              uint32
		Name             string
		Flags, Mode, GID uint32
	}
	Rlcreate struct {
		QID    QID
		IOUnit uint32
	}

	Tsymlink struct {
		DirFID       uint32
		Name, Target string
		GID          uint32
	}
	Rsymlink struct{ QID QID }

	Tmknod struct {
		DirFID                  uint32
		Name                    string
		Mode, Major, Minor, GID uint32
	}
	Rmknod struct{ QID QID }

	Trename struct {
		FID, DirFID uint32
		Name        string
	}
	Rrename struct{}

	Treadlink struct{ FID uint32 }
	Rreadlink struct{ Target string }

	Tgetattr struct {
		FID  uint32
		Mask uint64
	}
	Rgetattr struct {
		Valid                                uint64
		QID                                  QID
		Mode, UID, GID                       uint32
		NLink, RDev, Size, BlockSize, Blocks uint64 // Blocks of 512 bytes
		Atime, Mtime, Ctime, Btime           Time
		Generation, DataVersion              uint64
	}

	Tsetattr struct {
		FID, Valid, Mode, UID, GID uint32
		Size                       uint64
		Atime, Mtime               Time
	}
	Rsetattr struct{}

	Txattrwalk struct {
		FID, NewFID uint32
		Name        string
	}
	Rxattrwalk struct{ Size uint64 }

	Txattrcreate struct {
		FID   uint32
		Name  string
		Size  uint64
		Flags uint32
	}
	Rxattrcreate struct{}

	Treaddir struct {
		FID    uint32
		Offset uint64 // 0, or that of the last entry which the client has
		Count  uint32
	}
	Rreaddir struct{ Data []byte } // of Dirents

	Tfsync struct{ FID, DataOnly uint32 }
	Rfsync struct{}

	Tlock struct {
		FID           uint32
		Kind          uint8
		Flags         uint32
		Start, Length uint64 // Length 0 is to the end
		ProcID        uint32
		ClientID      string
	}
	Rlock struct{ Status uint8 }

	Tgetlock struct {
		FID           uint32
		Kind          uint8
		Start, Length uint64
		ProcID        uint32
		ClientID      string
	}
	Rgetlock struct {
		Kind          uint8
		Start, Length uint64
		ProcID        uint32
		ClientID      string
	}

	Tlink struct {
		DirFID, FID uint32
		Name        string
	}
	Rlink struct{}

	Tmkdir struct {
		DirFID    uint32
		Name      string
		Mode, GID uint32
	}
	Rmkdir struct{ QID QID }

	Trenameat struct {
		OldDirFID uint32
		OldName   string
		NewDirFID uint32
		NewName   string
	}
	Rrenameat struct{}

	Tunlinkat struct {
		DirFID uint32
		Name   string
		Flags  uint32
	}
	Runlinkat struct{}

	Tversion struct {
		MaxSize uint32 // of a message, bytes
		Version string
	}
	Rversion struct {
		MaxSize uint32
		Version string
	}

	Tauth struct {
		AuthFID      uint32
		User, Attach string
		UID          uint32
	}
	Rauth struct{ QID QID }

	Tattach struct {
		FID, AuthFID uint32
		User, Attach string
		UID          uint32
	}
	Rattach struct{ QID QID }

	Tflush struct{ OldTag uint16 }
	Rflush struct{}

	Twalk struct {
		FID, NewFID uint32
		Names       []string
	}
	Rwalk struct{ QIDs []QID }

	Tread struct {
		FID    uint32
		Offset uint64
		Count  uint32
	}
	Rread struct{ Data []byte }

	Twrite struct {
		FID    uint32
		Offset uint64
		Data   []byte
	}
	Rwrite struct{ Count uint32 }

	Tclunk struct{ FID uint32 }
	Rclunk struct{}

	Tremove struct{ FID uint32 }
	Rremove struct{}
)

// A Dirent is an entry of Rreaddir's data.
type Dirent struct {
	QID    QID
	Offset uint64 // where the next Treaddir goes on
	Kind   uint8  // DT_… of readdir(3)
	Name   string
}

// DirentOverhead is the size in bytes of an entry without its name.
const DirentOverhead = 13 + 8 + 1 + 2

// AppendDirent appends an entry to the data of an Rreaddir.
func AppendDirent(b []byte, d *Dirent) []byte {
	c := codec{buf: b}
	d.layout(&c)
	return c.buf
}

// ParseDirents is what a client makes of an Rreaddir's data.
func ParseDirents(b []byte) ([]Dirent, error) {
	c := codec{decoding: true, buf: b}
	var all []Dirent
	for len(c.buf) > 0 {
		var d Dirent
		d.layout(&c)
		all = append(all, d)
	}
	if c.failed {
		return nil, ErrMalformed
	}
	return all, nil
}

func (d *Dirent) layout(c *codec) {
	c.qid(&d.QID)
	c.u64(&d.Offset)
	c.u8(&d.Kind)
	c.str(&d.Name)
}
