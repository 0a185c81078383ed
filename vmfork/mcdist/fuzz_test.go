package mcdist

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// FuzzFrames reads frames from any bytes, and takes every one of them for everything. What can be read is written again,
// and must be the same.
func FuzzFrames(f *testing.F) {
	id := ID{1, 2, 3}
	spans := []span{{0, 1}, {7, 100}, {maxBlocks - 1, 1}}
	about := about{5000, [32]byte{9}}
	piece := end(append(beginBlocks(nil, 3, 8, 2), make([]byte, 2*slice.BlockSize)...), 0)
	packed := append(beginBlocks(nil, 3, 8, 1), (&packer{}).pack(make([]byte, 0, packSize), make([]byte, slice.BlockSize))...)
	packed = end(packed, 0)
	setFlags(packed, 0, flagPacked|flagLast)
	offered := (&offer{id: id, to: []int{1, 2}, spans: spans}).append(nil, 4)
	object := (&offer{id: id, object: true, about: about, to: []int{1, 2}}).append(nil, 4)
	f.Add(bytes.Join([][]byte{
		appendHello(nil, bulk), appendWant(nil, flagRelay, 2, id, spans), piece, packed, appendRefuse(nil, 5, refuseFailed, "no"),
		appendBare(nil, kindAsk, 6, id[:]...), offered, object, end(about.append(begin(nil, kindObject, 0, 7)), 0), appendBare(nil, kindBye, 0),
	}, nil))
	for _, frame := range [][]byte{piece, packed, offered, object} {
		f.Add(frame)
	}
	f.Add([]byte{255, 255, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newFrameReader(bytes.NewReader(data))
		scratch := make([]byte, pieceSize)
		for {
			fr, err := r.next()
			if err != nil {
				if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.Is(err, errFrame) {
					t.Fatalf("unexpected error: %v", err)
				}
				return
			}
			check := func(what string, wrote []byte, err error) {
				if err != nil {
					if !errors.Is(err, errFrame) {
						t.Fatalf("%s: unexpected error: %v", what, err)
					}
					return
				}
				if wrote != nil && !bytes.Equal(wrote[headerSize:], fr.body) {
					t.Fatalf("%s: %x was read, and %x written", what, fr.body, wrote[headerSize:])
				}
			}
			if lane, err := fr.hello(); err == nil {
				check("hello", appendHello(nil, lane), nil)
			}
			id, spans, err := fr.want()
			check("want", appendWant(nil, 0, 0, id, spans), err)
			if first, p, err := unpack(&fr, scratch); err == nil {
				if n := int64(len(p)) / slice.BlockSize; n < 1 || n > pieceBlocks || n*slice.BlockSize != int64(len(p)) || first < 0 || first+n > maxBlocks {
					t.Fatalf("%d bytes for block %d", len(p), first)
				}
			} else {
				check("blocks", nil, err)
			}
			if code, text, err := fr.refuse(); err == nil {
				check("refuse", appendRefuse(nil, 0, code, text), nil)
			} else {
				check("refuse", nil, err)
			}
			if o, err := fr.offer(); err == nil {
				check("offer", o.append(nil, 0), nil)
			} else {
				check("offer", nil, err)
			}
			if a, err := parseAbout(fr.body); err == nil {
				check("object", end(a.append(begin(nil, kindObject, 0, 0)), 0), nil)
			} else {
				check("object", nil, err)
			}
			if len(fr.body) > 0 {
				var w way
				check("way", nil, w.parse(fr.body))
			}
		}
	})
}
