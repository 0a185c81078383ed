package qemu

import "testing"

// Checkpoints are kept by this number, so every run must come to the same.
func TestTSCIsStable(t *testing.T) {
	want := measureTSC()
	if want < 500_000 || want > 10_000_000 {
		t.Fatalf("the time stamp counter runs at %d kHz", want)
	}
	for range 50 {
		if got := measureTSC(); got != want {
			t.Errorf("the time stamp counter ran at %d kHz, and then at %d", want, got)
		}
	}
}
