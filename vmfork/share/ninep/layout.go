package ninep

import "fmt"

// The table of types, and for every message the order of its fields, in the order of the types' numbers.

// A Type is the kind of a message, as on the wire.
type Type uint8

func (t Type) String() string {
	if m := newMessage(t); m != nil {
		return fmt.Sprintf("%T", m)[len("*ninep."):]
	}
	return fmt.Sprintf("message type %d", uint8(t))
}

// newMessage is an empty message of a type, or nil.
func newMessage(t Type) Message {
	switch t {
	case 7:
		return new(Rlerror)
	case 8:
		return new(Tstatfs)
	case 9:
		return new(Rstatfs)
	case 12:
		return new(Tlopen)
	case 13:
		return new(Rlopen)
	case 14:
		return new(Tlcreate)
	case 15:
		return new(Rlcreate)
	case 16:
		return new(Tsymlink)
	case 17:
		return new(Rsymlink)
	case 18:
		return new(Tmknod)
	case 19:
		return new(Rmknod)
	case 20:
		return new(Trename)
	case 21:
		return new(Rrename)
	case 22:
		return new(Treadlink)
	case 23:
		return new(Rreadlink)
	case 24:
		return new(Tgetattr)
	case 25:
		return new(Rgetattr)
	case 26:
		return new(Tsetattr)
	case 27:
		return new(Rsetattr)
	case 30:
		return new(Txattrwalk)
	case 31:
		return new(Rxattrwalk)
	case 32:
		return new(Txattrcreate)
	case 33:
		return new(Rxattrcreate)
	case 40:
		return new(Treaddir)
	case 41:
		return new(Rreaddir)
	case 50:
		return new(Tfsync)
	case 51:
		return new(Rfsync)
	case 52:
		return new(Tlock)
	case 53:
		return new(Rlock)
	case 54:
		return new(Tgetlock)
	case 55:
		return new(Rgetlock)
	case 70:
		return new(Tlink)
	case 71:
		return new(Rlink)
	case 72:
		return new(Tmkdir)
	case 73:
		return new(Rmkdir)
	case 74:
		return new(Trenameat)
	case 75:
		return new(Rrenameat)
	case 76:
		return new(Tunlinkat)
	case 77:
		return new(Runlinkat)
	case 100:
		return new(Tversion)
	case 101:
		return new(Rversion)
	case 102:
		return new(Tauth)
	case 103:
		return new(Rauth)
	case 104:
		return new(Tattach)
	case 105:
		return new(Rattach)
	case 108:
		return new(Tflush)
	case 109:
		return new(Rflush)
	case 110:
		return new(Twalk)
	case 111:
		return new(Rwalk)
	case 116:
		return new(Tread)
	case 117:
		return new(Rread)
	case 118:
		return new(Twrite)
	case 119:
		return new(Rwrite)
	case 120:
		return new(Tclunk)
	case 121:
		return new(Rclunk)
	case 122:
		return new(Tremove)
	case 123:
		return new(Rremove)
	}
	return nil
}

func (*Rlerror) Type() Type      { return 7 }
func (*Tstatfs) Type() Type      { return 8 }
func (*Rstatfs) Type() Type      { return 9 }
func (*Tlopen) Type() Type       { return 12 }
func (*Rlopen) Type() Type       { return 13 }
func (*Tlcreate) Type() Type     { return 14 }
func (*Rlcreate) Type() Type     { return 15 }
func (*Tsymlink) Type() Type     { return 16 }
func (*Rsymlink) Type() Type     { return 17 }
func (*Tmknod) Type() Type       { return 18 }
func (*Rmknod) Type() Type       { return 19 }
func (*Trename) Type() Type      { return 20 }
func (*Rrename) Type() Type      { return 21 }
func (*Treadlink) Type() Type    { return 22 }
func (*Rreadlink) Type() Type    { return 23 }
func (*Tgetattr) Type() Type     { return 24 }
func (*Rgetattr) Type() Type     { return 25 }
func (*Tsetattr) Type() Type     { return 26 }
func (*Rsetattr) Type() Type     { return 27 }
func (*Txattrwalk) Type() Type   { return 30 }
func (*Rxattrwalk) Type() Type   { return 31 }
func (*Txattrcreate) Type() Type { return 32 }
func (*Rxattrcreate) Type() Type { return 33 }
func (*Treaddir) Type() Type     { return 40 }
func (*Rreaddir) Type() Type     { return 41 }
func (*Tfsync) Type() Type       { return 50 }
func (*Rfsync) Type() Type       { return 51 }
func (*Tlock) Type() Type        { return 52 }
func (*Rlock) Type() Type        { return 53 }
func (*Tgetlock) Type() Type     { return 54 }
func (*Rgetlock) Type() Type     { return 55 }
func (*Tlink) Type() Type        { return 70 }
func (*Rlink) Type() Type        { return 71 }
func (*Tmkdir) Type() Type       { return 72 }
func (*Rmkdir) Type() Type       { return 73 }
func (*Trenameat) Type() Type    { return 74 }
func (*Rrenameat) Type() Type    { return 75 }
func (*Tunlinkat) Type() Type    { return 76 }
func (*Runlinkat) Type() Type    { return 77 }
func (*Tversion) Type() Type     { return 100 }
func (*Rversion) Type() Type     { return 101 }
func (*Tauth) Type() Type        { return 102 }
func (*Rauth) Type() Type        { return 103 }
func (*Tattach) Type() Type      { return 104 }
func (*Rattach) Type() Type      { return 105 }
func (*Tflush) Type() Type       { return 108 }
func (*Rflush) Type() Type       { return 109 }
func (*Twalk) Type() Type        { return 110 }
func (*Rwalk) Type() Type        { return 111 }
func (*Tread) Type() Type        { return 116 }
func (*Rread) Type() Type        { return 117 }
func (*Twrite) Type() Type       { return 118 }
func (*Rwrite) Type() Type       { return 119 }
func (*Tclunk) Type() Type       { return 120 }
func (*Rclunk) Type() Type       { return 121 }
func (*Tremove) Type() Type      { return 122 }
func (*Rremove) Type() Type      { return 123 }

func (m *Rlerror) layout(c *codec) { c.u32(&m.Errno) }
func (m *Tstatfs) layout(c *codec) { c.u32(&m.FID) }

func (m *Rstatfs) layout(c *codec) {
	c.u32(&m.Kind)
	c.u32(&m.BlockSize)
	c.u64(&m.Blocks)
	c.u64(&m.Free)
	c.u64(&m.Available)
	c.u64(&m.Files)
	c.u64(&m.FilesFree)
	c.u64(&m.FSID)
	c.u32(&m.NameLength)
}

func (m *Tlopen) layout(c *codec) {
	c.u32(&m.FID)
	c.u32(&m.Flags)
}

func (m *Rlopen) layout(c *codec) {
	c.qid(&m.QID)
	c.u32(&m.IOUnit)
}

func (m *Tlcreate) layout(c *codec) {
	c.u32(&m.FID)
	c.str(&m.Name)
	c.u32(&m.Flags)
	c.u32(&m.Mode)
	c.u32(&m.GID)
}

func (m *Rlcreate) layout(c *codec) {
	c.qid(&m.QID)
	c.u32(&m.IOUnit)
}

func (m *Tsymlink) layout(c *codec) {
	c.u32(&m.DirFID)
	c.str(&m.Name)
	c.str(&m.Target)
	c.u32(&m.GID)
}

func (m *Rsymlink) layout(c *codec) { c.qid(&m.QID) }

func (m *Tmknod) layout(c *codec) {
	c.u32(&m.DirFID)
	c.str(&m.Name)
	c.u32(&m.Mode)
	c.u32(&m.Major)
	c.u32(&m.Minor)
	c.u32(&m.GID)
}

func (m *Rmknod) layout(c *codec) { c.qid(&m.QID) }

func (m *Trename) layout(c *codec) {
	c.u32(&m.FID)
	c.u32(&m.DirFID)
	c.str(&m.Name)
}

func (*Rrename) layout(*codec)       {}
func (m *Treadlink) layout(c *codec) { c.u32(&m.FID) }
func (m *Rreadlink) layout(c *codec) { c.str(&m.Target) }

func (m *Tgetattr) layout(c *codec) {
	c.u32(&m.FID)
	c.u64(&m.Mask)
}

func (m *Rgetattr) layout(c *codec) {
	c.u64(&m.Valid)
	c.qid(&m.QID)
	c.u32(&m.Mode)
	c.u32(&m.UID)
	c.u32(&m.GID)
	c.u64(&m.NLink)
	c.u64(&m.RDev)
	c.u64(&m.Size)
	c.u64(&m.BlockSize)
	c.u64(&m.Blocks)
	c.time(&m.Atime)
	c.time(&m.Mtime)
	c.time(&m.Ctime)
	c.time(&m.Btime)
	c.u64(&m.Generation)
	c.u64(&m.DataVersion)
}

func (m *Tsetattr) layout(c *codec) {
	c.u32(&m.FID)
	c.u32(&m.Valid)
	c.u32(&m.Mode)
	c.u32(&m.UID)
	c.u32(&m.GID)
	c.u64(&m.Size)
	c.time(&m.Atime)
	c.time(&m.Mtime)
}

func (*Rsetattr) layout(*codec) {}

func (m *Txattrwalk) layout(c *codec) {
	c.u32(&m.FID)
	c.u32(&m.NewFID)
	c.str(&m.Name)
}

func (m *Rxattrwalk) layout(c *codec) { c.u64(&m.Size) }

func (m *Txattrcreate) layout(c *codec) {
	c.u32(&m.FID)
	c.str(&m.Name)
	c.u64(&m.Size)
	c.u32(&m.Flags)
}

func (*Rxattrcreate) layout(*codec) {}

func (m *Treaddir) layout(c *codec) {
	c.u32(&m.FID)
	c.u64(&m.Offset)
	c.u32(&m.Count)
}

func (m *Rreaddir) layout(c *codec) { c.bytes(&m.Data) }

func (m *Tfsync) layout(c *codec) {
	c.u32(&m.FID)
	c.u32(&m.DataOnly)
}

func (*Rfsync) layout(*codec) {}

func (m *Tlock) layout(c *codec) {
	c.u32(&m.FID)
	c.u8(&m.Kind)
	c.u32(&m.Flags)
	c.u64(&m.Start)
	c.u64(&m.Length)
	c.u32(&m.ProcID)
	c.str(&m.ClientID)
}

func (m *Rlock) layout(c *codec) { c.u8(&m.Status) }

func (m *Tgetlock) layout(c *codec) {
	c.u32(&m.FID)
	c.u8(&m.Kind)
	c.u64(&m.Start)
	c.u64(&m.Length)
	c.u32(&m.ProcID)
	c.str(&m.ClientID)
}

func (m *Rgetlock) layout(c *codec) {
	c.u8(&m.Kind)
	c.u64(&m.Start)
	c.u64(&m.Length)
	c.u32(&m.ProcID)
	c.str(&m.ClientID)
}

func (m *Tlink) layout(c *codec) {
	c.u32(&m.DirFID)
	c.u32(&m.FID)
	c.str(&m.Name)
}

func (*Rlink) layout(*codec) {}

func (m *Tmkdir) layout(c *codec) {
	c.u32(&m.DirFID)
	c.str(&m.Name)
	c.u32(&m.Mode)
	c.u32(&m.GID)
}

func (m *Rmkdir) layout(c *codec) { c.qid(&m.QID) }

func (m *Trenameat) layout(c *codec) {
	c.u32(&m.OldDirFID)
	c.str(&m.OldName)
	c.u32(&m.NewDirFID)
	c.str(&m.NewName)
}

func (*Rrenameat) layout(*codec) {}

func (m *Tunlinkat) layout(c *codec) {
	c.u32(&m.DirFID)
	c.str(&m.Name)
	c.u32(&m.Flags)
}

func (*Runlinkat) layout(*codec) {}

func (m *Tversion) layout(c *codec) {
	c.u32(&m.MaxSize)
	c.str(&m.Version)
}

func (m *Rversion) layout(c *codec) {
	c.u32(&m.MaxSize)
	c.str(&m.Version)
}

func (m *Tauth) layout(c *codec) {
	c.u32(&m.AuthFID)
	c.str(&m.User)
	c.str(&m.Attach)
	c.u32(&m.UID)
}

func (m *Rauth) layout(c *codec) { c.qid(&m.QID) }

func (m *Tattach) layout(c *codec) {
	c.u32(&m.FID)
	c.u32(&m.AuthFID)
	c.str(&m.User)
	c.str(&m.Attach)
	c.u32(&m.UID)
}

func (m *Rattach) layout(c *codec) { c.qid(&m.QID) }
func (m *Tflush) layout(c *codec)  { c.u16(&m.OldTag) }
func (*Rflush) layout(*codec)      {}

func (m *Twalk) layout(c *codec) {
	c.u32(&m.FID)
	c.u32(&m.NewFID)
	if n := c.count(len(m.Names)); c.decoding {
		m.Names = make([]string, n)
	}
	for i := range m.Names {
		c.str(&m.Names[i])
	}
}

func (m *Rwalk) layout(c *codec) {
	if n := c.count(len(m.QIDs)); c.decoding {
		m.QIDs = make([]QID, n)
	}
	for i := range m.QIDs {
		c.qid(&m.QIDs[i])
	}
}

func (m *Tread) layout(c *codec) {
	c.u32(&m.FID)
	c.u64(&m.Offset)
	c.u32(&m.Count)
}

func (m *Rread) layout(c *codec) { c.bytes(&m.Data) }

func (m *Twrite) layout(c *codec) {
	c.u32(&m.FID)
	c.u64(&m.Offset)
	c.bytes(&m.Data)
}

func (m *Rwrite) layout(c *codec)  { c.u32(&m.Count) }
func (m *Tclunk) layout(c *codec)  { c.u32(&m.FID) }
func (*Rclunk) layout(*codec)      {}
func (m *Tremove) layout(c *codec) { c.u32(&m.FID) }
func (*Rremove) layout(*codec)     {}
