package pmi

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// The upstream protocol: what a clone's Proxy and the launcher's Server say to each other.
//
//	frame  = length (4 bytes, big endian, 1 to maxFrame) kind (1 byte) fields
//	number = unsigned varint; code is a zigzag varint; found is one byte, 0 or 1
//	string = number of bytes, bytes
//	ranks, codes = how many, then each
//	pairs = how many, then key and value of each
//	apps  = how many, then of each its ranks, arguments (how many, then each) and info (as pairs)
//
// The fields of each kind are in layouts. The first frame each way is hello and welcome (or refuse), which begin with
// the version; nothing else of a hello is read when the version is not ours. A change of any kind's fields is a new version.
const (
	protocolVersion = 2
	protocolMagic   = "mpirun-sf pmi proxy"

	maxFrame = 256 << 10 // bytes after the length
	maxText  = 1 << 10   // bytes of a text

	// pairsPerFrame is where a batch of pairs is cut into a further put frame, in bytes.
	pairsPerFrame = maxFrame / 2
)

type kind uint8

const (
	kindHello      kind = iota + 1 // proxy: who I am and which ranks I serve
	kindWelcome                    // server: go on
	kindRefuse                     // server: this stream ends here, and why
	kindInit                       // proxy: a rank sent init
	kindFinalize                   // proxy: a rank sent finalize
	kindClosed                     // proxy: a rank's connection is closed; the last message about it
	kindAbort                      // proxy: a rank called MPI_Abort
	kindFault                      // proxy: a rank sent something that it should not have
	kindGet                        // proxy: a rank wants a key that is not in the cache
	kindPublish                    // proxy: a rank publishes a name
	kindUnpublish                  // proxy: a rank takes a name back
	kindLookup                     // proxy: a rank looks a name up
	kindAnswer                     // server: answer to kindGet and to the three about names
	kindSpawn                      // proxy: a rank wants a new group
	kindSpawned                    // server: answer to kindSpawn
	kindPut                        // both: pairs that did not fit into the barrier message that follows
	kindBarrierIn                  // proxy: all local ranks of a barrier are in, and this is what was put
	kindBarrierOut                 // server: all ranks of a barrier are in, and this is what was put
	kindBye                        // server: all your ranks are closed; end of stream
)

type field uint8

const (
	fieldVersion field = iota
	fieldName
	fieldSize
	fieldRanks
	fieldRank
	fieldCode
	fieldCodes
	fieldText
	fieldKey
	fieldService
	fieldBarrier
	fieldFound
	fieldValue
	fieldPairs
	fieldApps
)

var layouts = map[kind]struct {
	name   string
	fields []field
}{
	kindHello:      {"hello", []field{fieldVersion, fieldName, fieldSize, fieldRanks}},
	kindWelcome:    {"welcome", []field{fieldVersion}},
	kindRefuse:     {"refuse", []field{fieldText}},
	kindInit:       {"init", []field{fieldRank}},
	kindFinalize:   {"finalize", []field{fieldRank}},
	kindClosed:     {"closed", []field{fieldRank}},
	kindAbort:      {"abort", []field{fieldRank, fieldCode, fieldText}},
	kindFault:      {"fault", []field{fieldRank, fieldText}},
	kindGet:        {"get", []field{fieldRank, fieldKey}},
	kindPublish:    {"publish", []field{fieldRank, fieldService, fieldValue}},
	kindUnpublish:  {"unpublish", []field{fieldRank, fieldService}},
	kindLookup:     {"lookup", []field{fieldRank, fieldService}},
	kindAnswer:     {"answer", []field{fieldRank, fieldFound, fieldValue, fieldText}},
	kindSpawn:      {"spawn", []field{fieldRank, fieldApps, fieldPairs}},
	kindSpawned:    {"spawned", []field{fieldRank, fieldFound, fieldName, fieldCodes, fieldText}},
	kindPut:        {"put", []field{fieldPairs}},
	kindBarrierIn:  {"barrier_in", []field{fieldBarrier, fieldPairs}},
	kindBarrierOut: {"barrier_out", []field{fieldBarrier, fieldPairs}},
	kindBye:        {"bye", nil},
}

func (k kind) String() string {
	if l, ok := layouts[k]; ok {
		return l.name
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// message is any message; only the fields in its kind's layout mean something.
type message struct {
	kind    kind
	version uint64 // hello, welcome
	name    string // KVS name: of the group, or of the one that was spawned
	size    int    // ranks in the group
	ranks   []int  // ranks behind this proxy
	rank    int
	code    int    // exit status given to MPI_Abort
	codes   []int  // of each spawned rank; none is all 0
	text    string // for a person; in answers one PMI word, the reason
	key     string
	service string // a published name
	barrier string // whose barrier, as members names it
	found   bool   // or done, where the question is to do something
	value   string
	pairs   []Pair
	apps    []SpawnApp
}

// appendFrame appends m as one frame.
func appendFrame(b []byte, m message) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(m.kind))
	number := func(n int) { b = binary.AppendUvarint(b, uint64(n)) }
	str := func(s string) {
		number(len(s))
		b = append(b, s...)
	}
	pairs := func(pairs []Pair) {
		number(len(pairs))
		for _, p := range pairs {
			str(p.Key)
			str(p.Value)
		}
	}
	for _, f := range layouts[m.kind].fields {
		switch f {
		case fieldVersion:
			str(protocolMagic)
			b = binary.AppendUvarint(b, m.version)
		case fieldName:
			str(m.name)
		case fieldSize:
			number(m.size)
		case fieldRanks:
			number(len(m.ranks))
			for _, r := range m.ranks {
				number(r)
			}
		case fieldRank:
			number(m.rank)
		case fieldCode:
			b = binary.AppendVarint(b, int64(m.code))
		case fieldCodes:
			number(len(m.codes))
			for _, c := range m.codes {
				b = binary.AppendVarint(b, int64(c))
			}
		case fieldText:
			str(m.text[:min(len(m.text), maxText)])
		case fieldKey:
			str(m.key)
		case fieldService:
			str(m.service)
		case fieldBarrier:
			str(m.barrier)
		case fieldFound:
			found := byte(0)
			if m.found {
				found = 1
			}
			b = append(b, found)
		case fieldValue:
			str(m.value)
		case fieldPairs:
			pairs(m.pairs)
		case fieldApps:
			number(len(m.apps))
			for _, a := range m.apps {
				number(a.Ranks)
				number(len(a.Argv))
				for _, arg := range a.Argv {
					str(arg)
				}
				pairs(a.Info)
			}
		}
	}
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

// appendPairs appends m with these pairs, in as many put frames before it as it takes.
func appendPairs(b []byte, m message, pairs []Pair) []byte {
	first, bytes := 0, 0
	for i, p := range pairs {
		if bytes += len(p.Key) + len(p.Value) + 2*binary.MaxVarintLen16; bytes > pairsPerFrame {
			b = appendFrame(b, message{kind: kindPut, pairs: pairs[first:i]})
			first, bytes = i, 0
		}
	}
	m.pairs = pairs[first:]
	return appendFrame(b, m)
}

// readMessage reads one frame. io.EOF is the end of the stream between two frames; inside one it is io.ErrUnexpectedEOF.
func readMessage(r *bufio.Reader) (message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return message{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxFrame {
		return message{}, fmt.Errorf("frame of %d bytes: must be 1 to %d; the peer does not speak this protocol", n, maxFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, err
	}
	return parseMessage(body)
}
