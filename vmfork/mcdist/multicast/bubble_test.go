//go:build !race

package multicast

import (
	"testing"
	"testing/synctest"
)

// inBubble runs a test in virtual time.
func inBubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}
