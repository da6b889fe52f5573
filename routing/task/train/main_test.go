package main

import (
	"strings"
	"testing"
)

// TestWeightsAreCurrent retrains and compares: the embedded tables are what the
// committed texts give, byte for byte.
func TestWeightsAreCurrent(t *testing.T) {
	if testing.Short() {
		t.Skip("retraining takes some seconds")
	}
	t.Chdir("../../..")
	var out strings.Builder
	if err := run([]string{"-check"}, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "is what the corpus gives") {
		t.Errorf("printed %q", out.String())
	}
}
