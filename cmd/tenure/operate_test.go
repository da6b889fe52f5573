package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"tenure/proxy"
	"tenure/residency"
)

// command runs tenure against a running server.
func (r *running) command(t *testing.T, args string) (code int, out string) {
	t.Helper()
	var b bytes.Buffer
	code = run(t.Context(), strings.Fields(args), []string{"TENURE_ADMIN_LISTEN=" + strings.TrimPrefix(r.admin, "http://")}, &b, &b)
	return code, b.String()
}

func TestOperatorsCommands(t *testing.T) {
	r := start(t, []string{"--simulate"})
	ctx, stop := context.WithCancel(t.Context())
	followed := make(chan struct{})
	var live lockedBuffer
	go func() {
		defer close(followed)
		run(ctx, []string{"why", "--follow"}, []string{"TENURE_ADMIN_LISTEN=" + strings.TrimPrefix(r.admin, "http://")}, &live, &live)
	}()

	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"status --ready", 0, []string{"ready\n"}},
		{"preload phi3:mini", 0, []string{"phi3:mini   loaded"}},
		{"preload gpt-4o --unload phi3:mini", 1, []string{"does not exist", "always loaded", "2 of 2 models were refused"}},
		{"preload", 2, []string{"name models"}},
		{"preload --unload llama3", 0, []string{"llama3   unloaded   it was not loaded"}},
		{"why", 0, []string{"phi3:mini is being loaded, 2.0 GiB: it is to be kept loaded", "phi3:mini is ready after 1"}},
		{"why mistral:latest --json", 0, []string{`"decisions":[`}},
		{"why -n 0", 1, []string{"Invalid value for 'limit'"}},
		{"preload --all", 0, []string{"deepseek-llm:7b   loaded", "llama3            waiting", "mistral           loaded"}},
		{"status", 0, []string{"Memory 16.0 GiB of 20.0 GiB (80 %), 4.0 GiB free, 3 of 3 models", "By source: ledger 16.0 GiB"}},
	} {
		if code, out := r.command(t, c.args); code != c.code || !containsAll(out, c.want) {
			t.Errorf("tenure %s: exit %d, want %d and %q:\n%s", c.args, code, c.code, c.want, out)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(live.String(), "mistral is ready") && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	<-followed
	if !strings.Contains(live.String(), "mistral is ready") {
		t.Errorf("followed:\n%s", live.String())
	}
	if !strings.Contains(r.err.String(), "residency decided") {
		t.Error("decisions are not logged any more")
	}
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// Every action and finding has a sentence of its own.
func TestSentences(t *testing.T) {
	seen := map[string]string{}
	for _, e := range []proxy.Entry{
		{Decision: residency.Decision{Action: residency.ActClose, Reason: residency.Rent, Waiting: 3, Rent: 12, Threshold: 4}},
		{Decision: residency.Decision{Action: residency.ActReopen}},
		{Decision: residency.Decision{Action: residency.ActUnload}},
		{Decision: residency.Decision{Action: residency.ActUnloaded}},
		{Decision: residency.Decision{Action: residency.ActLoad}},
		{Decision: residency.Decision{Action: residency.ActLoaded}},
		{Decision: residency.Decision{Action: residency.ActLoadFail}},
		{Decision: residency.Decision{Action: residency.ActUnloadFail}},
		{Decision: residency.Decision{Action: residency.ActFail}},
		{Decision: residency.Decision{Action: residency.ActRefuse}},
		{Decision: residency.Decision{Action: residency.ActLinger}},
		{Decision: residency.Decision{Action: residency.ActLost}},
		{What: "restart"},
		{What: "vanished"},
		{What: "appeared"},
		{What: "foreign"},
		{What: "cpu"},
		{What: "context"},
		{What: "pin"},
		{What: "runner"},
		{What: "wedge"},
		{What: "rescue"},
	} {
		e.Model, e.For = "mistral", "llama3"
		s := sentence(&e)
		if other, twice := seen[s]; twice || !strings.Contains(s, "mistral") || strings.HasSuffix(s, e.What) && e.What != "" {
			t.Errorf("%s%s: %q (also of %q)", e.Action, e.What, s, other)
		}
		seen[s] = string(e.Action) + e.What
		if data, err := json.Marshal(e); err != nil || !json.Valid(data) {
			t.Errorf("%+v: %v", e, err)
		}
	}
}
