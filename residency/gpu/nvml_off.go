//go:build !linux || !cgo

package gpu

import (
	"fmt"
	"runtime"
)

// Probe reads the cards of this machine. This one cannot.
type Probe struct{}

// Open says why there are no figures.
func Open() (*Probe, error) {
	if runtime.GOOS != "linux" {
		return nil, fmt.Errorf("%w: NVML is read on Linux only", ErrUnavailable)
	}
	return nil, fmt.Errorf("%w: the program was built without cgo", ErrUnavailable)
}

// Read fails.
func (*Probe) Read() (Reading, error) { return Reading{}, ErrUnavailable }

// Close does nothing.
func (*Probe) Close() error { return nil }
