package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

const (
	superblockOffset = 1024
	superblockSize   = 1024
)

// errNoExt4 says that there is no ext file system.
var errNoExt4 = errors.New("no ext4 superblock")

// A superblock is what is read of an ext4 superblock (ext4(5), "The Super Block"
// in the kernel's documentation of ext4).
type superblock struct {
	blocks    uint64
	free      uint64
	blockSize uint64 // bytes
}

// size is the file system's, in bytes; a file that is shorter is cut off.
func (s superblock) size() int64 { return int64(s.blocks * s.blockSize) }

// used is what is not free, in bytes.
func (s superblock) used() int64 { return int64((s.blocks - s.free) * s.blockSize) }

// parseSuperblock reads the 1024 bytes at offset 1024 of a file system.
func parseSuperblock(b []byte) (superblock, error) {
	var s superblock
	if len(b) < superblockSize || binary.LittleEndian.Uint16(b[0x38:]) != 0xef53 {
		return s, errNoExt4
	}
	s.blocks = uint64(binary.LittleEndian.Uint32(b[0x04:]))
	s.free = uint64(binary.LittleEndian.Uint32(b[0x0c:]))
	if incompat := binary.LittleEndian.Uint32(b[0x60:]); incompat&0x80 != 0 { // 64bit
		s.blocks |= uint64(binary.LittleEndian.Uint32(b[0x150:])) << 32
		s.free |= uint64(binary.LittleEndian.Uint32(b[0x158:])) << 32
	}
	shift := binary.LittleEndian.Uint32(b[0x18:])
	if shift > 6 {
		return s, fmt.Errorf("ext4 superblock is damaged: block size 2^%d KB", shift)
	}
	s.blockSize = 1024 << shift
	hi, size := bits.Mul64(s.blocks, s.blockSize)
	if s.blocks == 0 || s.free > s.blocks || hi != 0 || size > 1<<62 {
		return s, fmt.Errorf("ext4 superblock is damaged: %d blocks, %d free", s.blocks, s.free)
	}
	return s, nil
}
