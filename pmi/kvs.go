package pmi

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// A group has one key-value space, and those that its ranks make with create_kvs. All are kept in one map: a key of a
// space that a rank made is written "SPACE KEY", which no key of the group's own can be, since those have no spaces.
// "SPACE " alone, without a key, says that the space was destroyed.

// maxSpace is the longest name of a space that a rank made, with what is between it and the group's name or the key.
const maxSpace = 16

// maxSpaces is how many spaces a rank may make.
const maxSpaces = 1000

// spaceName names the n-th space that a rank makes: unique in the group, without asking anybody.
func spaceName(rank, n int) string { return fmt.Sprintf("%d.%d", rank, n) }

// isSpace reports whether s is a name that spaceName can have written.
func isSpace(s string) bool {
	rank, n, found := strings.Cut(s, ".")
	if !found || len(s) >= maxSpace {
		return false
	}
	for _, number := range []string{rank, n} {
		if v, err := strconv.ParseUint(number, 10, 31); err != nil || strconv.FormatUint(v, 10) != number {
			return false
		}
	}
	return true
}

// inSpace is the key in the map; the group's own space has no name.
func inSpace(space, key string) string {
	if space == "" {
		return key
	}
	return space + " " + key
}

// destroyedSpace is the space that a key of the map says is destroyed.
func destroyedSpace(key string) (string, bool) {
	return strings.CutSuffix(key, " ")
}

// checkKey checks a key of the map.
func checkKey(key string) error {
	space, rest, found := strings.Cut(key, " ")
	if found {
		if !isSpace(space) {
			return fmt.Errorf("key %q in no key-value space", hearsay.Clip(key))
		}
		if key = rest; key == "" {
			return nil
		}
	}
	return checkPlainKey(key)
}

// checkPlainKey checks a key as ranks write it.
func checkPlainKey(key string) error {
	switch {
	case len(key) > MaxKey:
		return fmt.Errorf("a key of %d bytes: at most %d are taken", len(key), MaxKey)
	case key == "" || !hearsay.IsToken(key):
		return fmt.Errorf("key %q: must be printable characters without spaces", hearsay.Clip(key))
	}
	return nil
}

// checkValue checks a value for the KVS. One with a line end in it would let a clone speak in the server's name to ranks
// elsewhere.
func checkValue(key, value string, most int) error {
	if len(value) > most {
		return fmt.Errorf("%s with a value of %d bytes: at most %d are taken", hearsay.Clip(key), len(value), most)
	}
	if strings.ContainsAny(value, "\n\x00") {
		return fmt.Errorf("%s with a value that has a line end or a zero byte in it", hearsay.Clip(key))
	}
	return nil
}

// checkPreput checks what a group's KVS is to begin with.
func checkPreput(pairs []Pair) error {
	q := newQuota(rankQuota)
	for _, p := range pairs {
		if err := checkPlainKey(p.Key); err != nil {
			return fmt.Errorf("preput of %w", err)
		}
		if err := checkValue(p.Key, p.Value, maxStored); err != nil {
			return fmt.Errorf("preput of %w", err)
		}
		if err := q.take(p); err != nil {
			return err
		}
	}
	return nil
}

// quota bounds the bytes that one writer holds in the KVS: each key it ever put, with its latest value. A proxy keeps one
// per rank, which is where an excess is caught and named; the server keeps one per proxy, so that a clone gone wild cannot
// fill the launcher's memory. The server's never trips first, because a key that two ranks of a clone put counts there once.
type quota struct {
	limit int
	used  int
	held  map[string]int // key → bytes counted for it
}

// pairOverhead is what a pair costs beside its bytes: string headers and map slots.
const pairOverhead = 64

func newQuota(limit int) *quota { return &quota{limit: limit, held: map[string]int{}} }

// take counts p, or says that it is too much.
func (q *quota) take(p Pair) error {
	cost := len(p.Key) + len(p.Value) + pairOverhead
	used := q.used - q.held[p.Key] + cost
	if used > q.limit {
		return fmt.Errorf("put of %s: more than %d KB in the key-value space", p.Key, q.limit>>10)
	}
	q.used = used
	q.held[p.Key] = cost
	return nil
}

// batch is an ordered set of pairs: a key that is put again keeps its place and takes the new value.
type batch struct {
	pairs []Pair
	place map[string]int
}

func (b *batch) put(p Pair) {
	if i, ok := b.place[p.Key]; ok {
		b.pairs[i] = p
		return
	}
	if b.place == nil {
		b.place = map[string]int{}
	}
	b.place[p.Key] = len(b.pairs)
	b.pairs = append(b.pairs, p)
}

func (b *batch) holds(key string) bool { _, ok := b.place[key]; return ok }

// take empties the batch.
func (b *batch) take() []Pair {
	pairs := b.pairs
	*b = batch{}
	return pairs
}

// history is the KVS in the server: it knows the latest value of each key, and what was put since any moment.
type history struct {
	count uint64         // puts so far: the moment
	log   []event        // in the order of count; a key that was put again is blank in its old place
	place map[string]int // key → where in log
	blank int            // entries of log that are blank
}

// event is a put, or is blank.
type event struct {
	Pair
	moment uint64 // count after it
}

func (h *history) put(p Pair) {
	if h.place == nil {
		h.place = map[string]int{}
	}
	if space, ok := destroyedSpace(p.Key); ok {
		for key := range h.place {
			if strings.HasPrefix(key, space+" ") {
				h.remove(key)
			}
		}
	}
	h.remove(p.Key)
	h.count++
	h.place[p.Key] = len(h.log)
	h.log = append(h.log, event{p, h.count})
	if h.blank > 64 && h.blank > len(h.log)/2 {
		h.compact()
	}
}

func (h *history) remove(key string) {
	if i, ok := h.place[key]; ok {
		h.log[i].Pair = Pair{}
		h.blank++
		delete(h.place, key)
	}
}

func (h *history) compact() {
	h.log = slices.DeleteFunc(h.log, func(e event) bool { return e.Key == "" })
	h.blank = 0
	for i, e := range h.log {
		h.place[e.Key] = i
	}
}

func (h *history) get(key string) (string, bool) {
	i, ok := h.place[key]
	if !ok {
		return "", false
	}
	return h.log[i].Value, true
}

// since lists what was put after a moment and is not out of date.
func (h *history) since(moment uint64) []Pair {
	first, _ := slices.BinarySearchFunc(h.log, moment+1, func(e event, m uint64) int {
		switch {
		case e.moment < m:
			return -1
		case e.moment > m:
			return 1
		}
		return 0
	})
	var pairs []Pair
	for _, e := range h.log[first:] {
		if e.Key != "" {
			pairs = append(pairs, e.Pair)
		}
	}
	return pairs
}
