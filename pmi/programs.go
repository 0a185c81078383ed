package pmi

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// spawnWords are the keys by which a spawn names things. Where there are several, their number is given, and the number of
// each follows its key.
type spawnWords struct {
	program, ranks                  string
	args, arg                       string
	firstArg                        int
	info, infoKey, infoValue        string
	preputs, preputKey, preputValue string
}

var (
	lineWords = spawnWords{
		"execname", "nprocs", "argcnt", "arg", 1, "info_num", "info_key_", "info_val_", "preput_num", "preput_key_", "preput_val_",
	}
	packetWords = spawnWords{
		"subcmd", "maxprocs", "argc", "argv", 0, "infokeycount", "infokey", "infoval", "preputcount", "ppkey", "ppval",
	}
)

// app reads one program.
func (w spawnWords) app(values map[string]string) (SpawnApp, error) {
	if _, given := values[w.ranks]; !given {
		return SpawnApp{}, fmt.Errorf("spawn without %s", w.ranks)
	}
	ranks, err := count(values, w.ranks)
	if err != nil {
		return SpawnApp{}, err
	}
	args, err := count(values, w.args)
	if err != nil {
		return SpawnApp{}, err
	}
	a := SpawnApp{Argv: []string{values[w.program]}, Ranks: ranks}
	for i := w.firstArg; i < w.firstArg+args; i++ {
		arg, ok := values[w.arg+strconv.Itoa(i)]
		if !ok {
			return SpawnApp{}, fmt.Errorf("spawn of %d arguments without %s%d", args, w.arg, i)
		}
		a.Argv = append(a.Argv, arg)
	}
	a.Info, err = numbered(values, w.info, w.infoKey, w.infoValue)
	return a, err
}

// preput reads what the new group's KVS is to begin with.
func (w spawnWords) preput(values map[string]string) ([]Pair, error) {
	return numbered(values, w.preputs, w.preputKey, w.preputValue)
}

// values are the request's fields as a map: there may be thousands.
func (q request) values() map[string]string {
	m := make(map[string]string, len(q.fields))
	for _, f := range q.fields {
		m[f.Key] = f.Value
	}
	return m
}

// count reads how many of something there are; none if it does not say.
func count(values map[string]string, key string) (int, error) {
	text, ok := values[key]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n > MaxSize {
		return 0, fmt.Errorf("spawn with %s=%q: must be a number up to %d", key, hearsay.Clip(text), MaxSize)
	}
	return int(n), nil
}

// numbered reads pairs that are numbered from 0.
func numbered(values map[string]string, number, key, value string) ([]Pair, error) {
	n, err := count(values, number)
	if err != nil {
		return nil, err
	}
	var pairs []Pair
	for i := range n {
		k, ok := values[key+strconv.Itoa(i)]
		if !ok {
			return nil, fmt.Errorf("spawn with %s=%d and without %s%d", number, n, key, i)
		}
		pairs = append(pairs, Pair{k, values[value+strconv.Itoa(i)]})
	}
	return pairs, nil
}

// joinCodes writes error codes; all of them 0 is what clients take for granted.
func joinCodes(codes []int) string {
	if !slices.ContainsFunc(codes, func(c int) bool { return c != 0 }) {
		return ""
	}
	words := make([]string, len(codes))
	for i, c := range codes {
		words[i] = strconv.Itoa(c)
	}
	return strings.Join(words, ",")
}
