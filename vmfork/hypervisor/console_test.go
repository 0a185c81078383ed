package hypervisor

import (
	"os"
	"testing"
)

func TestConsoleLog(t *testing.T) {
	cfg := Config{Name: "clone-1", Dir: t.TempDir()}
	if got := ConsoleLog(cfg); got != "" {
		t.Errorf("the console of nothing ends with %q", got)
	}
	for said, want := range map[string]string{
		"one\ntwo\n\n": "two",
		"one":          "one",
		"":             "",
		"one\nmpirun-sf agent: no disk\n[ 1.0] reboot: Power down\n": "no disk",
	} {
		if err := os.WriteFile(cfg.ConsolePath(), []byte(said), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := ConsoleLog(cfg); got != want {
			t.Errorf("the console %q ends with %q, want %q", said, got, want)
		}
	}
}
