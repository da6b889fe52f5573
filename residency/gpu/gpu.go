// Package gpu reads what GPUs say of themselves: memory, who holds it, load,
// temperature, memory errors. The figures come from NVIDIA's management
// library (NVML), which comes with the driver and is opened when it is asked
// for; a program built without cgo, or for another system than Linux, says so
// instead.
package gpu

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"tenure/residency"
)

// ErrUnavailable means that nothing can be read on this machine. The text of
// an error that wraps it says why: no cgo, no driver, no card.
var ErrUnavailable = errors.New("gpu: no figures")

// Reading is one look at all cards.
type Reading struct {
	Driver string `json:"driver"` // its version, "550.54.14"
	Cards  []Card `json:"cards"`
}

// Card is one GPU. A pointer is nil where the card does not tell.
type Card struct {
	Name        string          `json:"name"`
	UUID        string          `json:"uuid"`
	Total       residency.Bytes `json:"total_bytes"`
	Used        residency.Bytes `json:"used_bytes"` // the driver's own share included
	Free        residency.Bytes `json:"free_bytes"`
	Utilisation *int            `json:"utilisation_percent"`
	Temperature *int            `json:"temperature_c"`
	ECC         *ECC            `json:"ecc"`
	Processes   []Process       `json:"processes"`
}

// ECC is a card's protection of its memory against errors. It costs some 6 %
// of the memory of cards such as the A5000.
type ECC struct {
	Enabled       bool   `json:"enabled"`
	Corrected     uint64 `json:"corrected"`   // errors since the driver was loaded
	Uncorrectable uint64 `json:"uncorrected"` // likewise; any is a reason to worry
}

// Process holds memory on a card.
type Process struct {
	PID  int             `json:"pid"`
	Used residency.Bytes `json:"used_bytes"` // 0: the driver does not tell
	Name string          `json:"name"`       // of its program file; "" when it cannot be read, as from within a container

	runner bool
}

// Ollama reports whether the process is a runner of Ollama: its own program,
// or one that it ships in a folder of its name.
func (p Process) Ollama() bool { return p.runner }

// NewProcess describes a process by its program file's path, which may be "".
func NewProcess(pid int, used residency.Bytes, path string) Process {
	name := strings.TrimSuffix(filepath.Base(path), ".exe")
	if path == "" {
		name = ""
	}
	folders := strings.Split(filepath.ToSlash(filepath.Dir(path)), "/")
	return Process{PID: pid, Used: used, Name: name, runner: name == "ollama" || slices.Contains(folders, "ollama")}
}

// Total is the memory of all cards.
func (r Reading) Total() residency.Bytes {
	return r.sum(func(c *Card) residency.Bytes { return c.Total })
}

// Used is what is taken of it, by whomever.
func (r Reading) Used() residency.Bytes {
	return r.sum(func(c *Card) residency.Bytes { return c.Used })
}

// Ollama is what Ollama's runners hold. It is 0 when no process could be told
// to be one.
func (r Reading) Ollama() residency.Bytes {
	return r.sum(func(c *Card) (b residency.Bytes) {
		for _, p := range c.Processes {
			if p.Ollama() {
				b += p.Used
			}
		}
		return b
	})
}

// Others lists the processes that are not Ollama's runners, the largest first.
func (r Reading) Others() []Process {
	var list []Process
	for _, c := range r.Cards {
		for _, p := range c.Processes {
			if !p.Ollama() {
				list = append(list, p)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b Process) int {
		switch {
		case a.Used > b.Used:
			return -1
		case a.Used < b.Used:
			return 1
		}
		return a.PID - b.PID
	})
	return list
}

func (r Reading) sum(of func(*Card) residency.Bytes) (b residency.Bytes) {
	for i := range r.Cards {
		b += of(&r.Cards[i])
	}
	return b
}
