package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// coverage turns the data that test binaries left in folder into a profile for "go tool cover", and returns the percentages of
// the packages, a line each.
func coverage(ctx context.Context, folder, profile string) (string, error) {
	if found, _ := filepath.Glob(filepath.Join(folder, "covmeta.*")); len(found) == 0 {
		return "", nil // packages of tests alone have nothing to cover
	}
	text := exec.CommandContext(ctx, "go", "tool", "covdata", "textfmt", "-i", folder, "-o", profile)
	text.Stderr = os.Stderr
	if err := text.Run(); err != nil {
		return "", fmt.Errorf("write %s: %w", profile, err)
	}
	percent := exec.CommandContext(ctx, "go", "tool", "covdata", "percent", "-i", folder)
	percent.Stderr = os.Stderr
	out, err := percent.Output()
	if err != nil {
		return "", fmt.Errorf("read the coverage: %w", err)
	}
	return string(bytes.ReplaceAll(out, []byte(module), nil)), nil
}
