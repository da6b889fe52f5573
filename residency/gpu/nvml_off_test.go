//go:build !linux || !cgo

package gpu

import (
	"errors"
	"strings"
	"testing"
)

// What cannot be read is said, with the reason.
func TestOff(t *testing.T) {
	_, err := Open()
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), ": ") || strings.HasSuffix(err.Error(), ErrUnavailable.Error()) {
		t.Errorf("got %v, want ErrUnavailable and why", err)
	}
	if _, err := (&Probe{}).Read(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
