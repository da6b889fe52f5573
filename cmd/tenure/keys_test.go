package main

import (
	"bytes"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A key works from when it is made to when it is revoked, before a server that
// is not restarted, and is found nowhere but where it was printed.
func TestKeysOfARunningServer(t *testing.T) {
	environ := []string{"TENURE_KEYS_FILE=" + filepath.Join(t.TempDir(), "keys.jsonl"), "TENURE_LOG_LEVEL=debug"}
	r := start(t, []string{"--simulate"}, environ...)
	keys := func(args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(t.Context(), append([]string{"keys"}, args...), environ, &out, &errs); code != 0 {
			t.Fatalf("tenure keys %v: exit %d\n%s", args, code, &errs)
		}
		return strings.TrimSpace(out.String())
	}
	status := func(key string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.api+"/v1/models", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	becomes := func(key string, want int) {
		t.Helper()
		got := 0
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			if got = status(key); got == want {
				return
			}
		}
		t.Errorf("got %d, want %d", got, want)
	}
	if got := status("none"); got != http.StatusUnauthorized {
		t.Errorf("without a key: %d", got)
	}
	secret := keys("create", "ats", "--models", "recruit/*")
	becomes(secret, http.StatusOK)
	keys("revoke", "ats")
	becomes(secret, http.StatusUnauthorized)
	if printed := r.out.String() + r.err.String(); strings.Contains(printed, secret) || !strings.Contains(printed, "key=ats") {
		t.Errorf("the log has the key, or not its name:\n%s", printed)
	}
}
