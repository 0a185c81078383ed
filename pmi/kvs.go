package pmi

import "fmt"

// quota bounds the bytes that one writer holds in the KVS: each key it ever put, with its latest value. A proxy keeps one
// per rank, which is where an excess is caught and named; the server keeps one per proxy, so that a clone gone wild cannot
// fill the launcher's memory. The server's never trips first, because a key that two ranks of a clone put counts there once.
type quota struct {
	limit int
	used  int
	held  map[string]int // key → bytes counted for it
}

// entryOverhead is what an entry costs beside its bytes: string headers and map slots.
const entryOverhead = 64

func newQuota(limit int) *quota { return &quota{limit: limit, held: map[string]int{}} }

// take counts e, or says that it is too much.
func (q *quota) take(e entry) error {
	cost := len(e.key) + len(e.value) + entryOverhead
	used := q.used - q.held[e.key] + cost
	if used > q.limit {
		return fmt.Errorf("put of %s: more than %d KB in the key-value space", e.key, q.limit>>10)
	}
	q.used = used
	q.held[e.key] = cost
	return nil
}

// batch is an ordered set of entries: a key that is put again keeps its place and takes the new value.
type batch struct {
	entries []entry
	place   map[string]int
}

func (b *batch) put(e entry) {
	if i, ok := b.place[e.key]; ok {
		b.entries[i] = e
		return
	}
	if b.place == nil {
		b.place = map[string]int{}
	}
	b.place[e.key] = len(b.entries)
	b.entries = append(b.entries, e)
}

// take empties the batch.
func (b *batch) take() []entry {
	entries := b.entries
	*b = batch{}
	return entries
}

// checkPut checks a rank's key and value against what get_maxes announced. The message is one PMI word.
func checkPut(key, value string) error {
	switch {
	case key == "" || !isToken(key):
		return fmt.Errorf("put of key %q: must be printable characters without spaces", clip(key))
	case len(key) > MaxKey:
		return fmt.Errorf("put of a key of %d bytes: get_maxes announced %d", len(key), MaxKey)
	case len(value) > MaxValue:
		return fmt.Errorf("put of %s with a value of %d bytes: get_maxes announced %d", key, len(value), MaxValue)
	}
	return nil
}
