package slurm

import (
	"errors"
	"fmt"
	"strings"
)

// expand expands a list of nodes, such as
//
//	n[01-03,7],m5,rack[1-2]n[0-1]
//
// to their names, in its order. Several pairs of brackets in one name count like
// digits, the last fastest; pairs do not nest, as in Slurm. Numbers keep the
// width that the first of a range is written in.
func expand(list string) ([]string, error) {
	if list == "" {
		return nil, errors.New("there is no host in it")
	}
	// An honest list of many hosts is not much longer than their names.
	if len(list) > maxHosts*(maxName+1) {
		return nil, errors.New("it is too long")
	}
	var all []string
	seen := map[string]bool{}
	for _, pattern := range split(list) {
		names, err := expandOne(pattern)
		if err != nil {
			return nil, err
		}
		if len(all)+len(names) > maxHosts {
			return nil, fmt.Errorf("it is of more than %d hosts", maxHosts)
		}
		for _, name := range names {
			if err := checkName(name); err != nil {
				return nil, err
			}
			if seen[name] {
				return nil, fmt.Errorf("%s is in it twice", name)
			}
			seen[name] = true
		}
		all = append(all, names...)
	}
	return all, nil
}

// split cuts at commas that are not in brackets.
func split(list string) []string {
	var all []string
	inside := false
	begin := 0
	for i := range len(list) {
		switch list[i] {
		case '[':
			inside = true
		case ']':
			inside = false
		case ',':
			if !inside {
				all = append(all, list[begin:i])
				begin = i + 1
			}
		}
	}
	return append(all, list[begin:])
}

// expandOne expands one pattern with any number of brackets.
func expandOne(pattern string) ([]string, error) {
	names := []string{""}
	for rest := pattern; rest != ""; {
		head, tail, ok := strings.Cut(rest, "[")
		for i := range names {
			names[i] += head
		}
		if len(names[0]) > maxName {
			return nil, fmt.Errorf("a name of more than %d bytes", maxName)
		}
		if !ok {
			break
		}
		inside, after, ok := strings.Cut(tail, "]")
		if !ok {
			return nil, fmt.Errorf("%q has a [ without a ]", pattern)
		}
		numbers, err := expandRanges(inside)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", pattern, err)
		}
		if len(names)*len(numbers) > maxHosts {
			return nil, fmt.Errorf("%q is of more than %d hosts", pattern, maxHosts)
		}
		product := make([]string, 0, len(names)*len(numbers))
		for _, name := range names {
			for _, n := range numbers {
				product = append(product, name+n)
			}
		}
		names, rest = product, after
	}
	return names, nil
}

// expandRanges expands what is between brackets, as 01-03,7.
func expandRanges(s string) ([]string, error) {
	const (
		maxDigits = 18
		maxNumber = 1e18
	)
	var all []string
	for _, part := range strings.Split(s, ",") {
		low, high, ok := strings.Cut(part, "-")
		if !ok {
			high = low
		}
		if len(low) > maxDigits || len(high) > maxDigits {
			return nil, fmt.Errorf("a number of more than %d digits", maxDigits)
		}
		first, err := number(low, maxNumber)
		if err != nil {
			return nil, err
		}
		last, err := number(high, maxNumber)
		if err != nil {
			return nil, err
		}
		if last < first {
			return nil, fmt.Errorf("%s is not a range", part)
		}
		if last-first >= maxHosts || len(all)+last-first+1 > maxHosts {
			return nil, fmt.Errorf("%s is of more than %d hosts", part, maxHosts)
		}
		for n := first; n <= last; n++ {
			all = append(all, fmt.Sprintf("%0*d", len(low), n))
		}
	}
	return all, nil
}

// checkName lets only names pass that can be hosts', and that are no options
// where they become arguments.
func checkName(name string) error {
	if name == "" {
		return errors.New("a host's name is missing")
	}
	if len(name) > maxName {
		return fmt.Errorf("a name of more than %d bytes", maxName)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case (c == '-' || c == '.') && i > 0:
		default:
			return fmt.Errorf("%q is not the name of a host", name)
		}
	}
	return nil
}
