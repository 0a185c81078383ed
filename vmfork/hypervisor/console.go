package hypervisor

import (
	"bytes"
	"os"
	"path/filepath"
)

// ConsolePath is the file in which a driver keeps what a machine's kernel prints.
func (c Config) ConsolePath() string { return filepath.Join(c.Dir, c.Name+".console") }

// agentLine begins what the guest's agent says on the console when it gives up.
const agentLine = "mpirun-sf agent: "

// ConsoleLog returns what explains a machine's end best, for errors: the agent's
// last line, or the end of what the kernel printed.
func ConsoleLog(cfg Config) string {
	b, err := os.ReadFile(cfg.ConsolePath())
	if err != nil {
		return ""
	}
	if i := bytes.LastIndex(b, []byte(agentLine)); i >= 0 {
		line, _, _ := bytes.Cut(b[i+len(agentLine):], []byte("\n"))
		return string(bytes.TrimSpace(line))
	}
	b = bytes.TrimSpace(b)
	return string(bytes.TrimSpace(b[bytes.LastIndexByte(b, '\n')+1:]))
}
