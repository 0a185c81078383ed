package launch

import "testing"

func TestMapping(t *testing.T) {
	for want, ranks := range map[string][][]int{
		"(vector,(0,1,1))":                 {{0}},
		"(vector,(0,4,1))":                 {{0}, {1}, {2}, {3}},
		"(vector,(0,2,2),(2,1,1))":         {{0, 1}, {2, 3}, {4}},
		"(vector,(0,2,1))":                 {{0, 2, 4}, {1, 3, 5}},
		"(vector,(0,2,1),(0,1,1))":         {{0, 2}, {1}},
		"(vector,(0,1,2),(1,1,1))":         {{0, 1, 3, 4}, {}, {2, 5}},
		"(vector,(0,1,4))":                 {{}, {0, 1, 2, 3}, {}},
		"(vector,(0,1,1),(1,1,2),(0,1,1))": {{0, 3}, {1, 2}},
	} {
		var places []Place
		np := 0
		for _, r := range ranks {
			places = append(places, Place{Ranks: r})
			np += len(r)
		}
		if got := mapping(places, np); got != want {
			t.Errorf("%v: %s, want %s", ranks, got, want)
		}
	}
}
