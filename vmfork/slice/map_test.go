package slice

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/bits-and-blooms/bitset"
)

// sum puts the checksum behind what may be a packed map.
func sum(body []byte) []byte {
	return binary.LittleEndian.AppendUint32(body[:len(body):len(body)], crc32.Checksum(body, castagnoli))
}

func FuzzSentMap(f *testing.F) {
	for _, pattern := range []string{"a", "a0bz", strings.Repeat("a0z", 100)} {
		s, _ := sealed(f, Memory, pattern, 3)
		packed, err := s.Map().MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed, true)
		f.Add(packed[:len(packed)/2], false)
	}
	big, err := Map{Kind: Disk, Size: MaxImageSize >> 8, Stored: bitset.New(0), Zero: bitset.New(9).Set(8)}.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(big, true)
	f.Fuzz(func(t *testing.T, data []byte, resum bool) {
		if len(data) > 64<<10 {
			return
		}
		if resum && len(data) > wireSum {
			data = sum(data[:len(data)-wireSum])
		}
		var m Map
		if err := m.UnmarshalBinary(data); err != nil {
			if m != (Map{}) {
				t.Error("changed after an error")
			}
			return
		}
		if m.check() != nil || int64(m.Stored.Len()) != blocksOf(m.Size) {
			t.Fatal("a map that cannot be")
		}
		packed, err := m.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var again Map
		if err := again.UnmarshalBinary(packed); err != nil || again.ID != m.ID || again.Size != m.Size || again.Kind != m.Kind ||
			!again.Stored.Equal(m.Stored) || !again.Zero.Equal(m.Zero) {
			t.Fatalf("another map after packing (%v)", err)
		}
	})
}

func TestSentMapNamesWhatIsWrong(t *testing.T) {
	s, _ := sealed(t, Disk, "a0bz", 0)
	good, err := s.Map().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, to ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], to)
		return sum(b[:len(b)-wireSum])
	}
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"empty":     {nil, ErrForeign},
		"text":      {[]byte("a text that is long enough to be a map, but is none"), ErrForeign},
		"short":     {good[:30], ErrTruncated},
		"cut":       {good[:len(good)-1], ErrCorrupt},
		"newer":     {change(8, 2), ErrNewer},
		"kind":      {change(12, 9), ErrCorrupt},
		"larger":    {change(36, 1), ErrCorrupt},
		"smaller":   {change(32, 1, 0), ErrCorrupt},
		"too large": {change(38, 1), ErrCorrupt},
		"no frame":  {change(40, 1, 2, 3), ErrCorrupt},
	} {
		var m Map
		if err := m.UnmarshalBinary(c.data); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
