package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// coverage turns the data that test binaries left in folders two below folder into a profile for "go tool cover", and returns the percentages of
// the packages, a line each.
func coverage(ctx context.Context, folder, profile string) (string, error) {
	found, _ := filepath.Glob(filepath.Join(folder, "*/*/covmeta.*"))
	var folders []string
	for _, f := range found {
		folders = append(folders, filepath.Dir(f))
	}
	slices.Sort(folders)
	from := strings.Join(slices.Compact(folders), ",")
	if from == "" {
		return "", nil // packages of tests alone have nothing to cover
	}
	text := exec.CommandContext(ctx, "go", "tool", "covdata", "textfmt", "-i", from, "-o", profile)
	text.Stderr = os.Stderr
	if err := text.Run(); err != nil {
		return "", fmt.Errorf("write %s: %w", profile, err)
	}
	percent := exec.CommandContext(ctx, "go", "tool", "covdata", "percent", "-i", from)
	percent.Stderr = os.Stderr
	out, err := percent.Output()
	if err != nil {
		return "", fmt.Errorf("read the coverage: %w", err)
	}
	return string(bytes.ReplaceAll(out, []byte(module), nil)), nil
}
