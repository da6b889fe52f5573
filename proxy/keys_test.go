package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tenure/residency"
)

// keyFile writes a key file whose clients have the key that is their name.
func keyFile(t *testing.T, clients ...Client) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, file, clients...)
	return file
}

// writeKeys replaces a key file as a whole, as tenure keys does.
func writeKeys(t *testing.T, file string, clients ...Client) {
	t.Helper()
	var text []byte
	for _, c := range clients {
		c.Hash = HashSecret(c.Name)
		line, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		text = append(append(text, line...), '\n')
	}
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func bearer(secret string) []string { return []string{"Authorization", "Bearer " + secret} }

func TestKeyMayUseItsModels(t *testing.T) {
	file := keyFile(t,
		Client{Name: "tasks", Models: []string{"recruit/*"}},
		Client{Name: "one", Models: []string{"Mistral:latest", "recruit-auto"}},
		Client{Name: "all"})
	inBubble(t, rigConfig{proxy: Config{KeysFile: file}}, func(t *testing.T, r *rig) {
		for _, c := range []struct {
			key, model string
			status     int
		}{
			{"tasks", "recruit/report_generation", 200},
			{"tasks", "recruit-report_generation", 200},
			{"tasks", "recruit:report_generation:latest", 200},
			{"tasks", "recruit-auto", 403},
			{"tasks", "phi3:mini", 403},
			{"tasks", "gpt-4o", 403}, // not even that there is none
			{"one", "mistral", 200},
			{"one", "library/Mistral:latest", 200},
			{"one", "recruit-auto", 200},
			{"one", "recruit/auto", 200},
			{"one", "recruit/general", 403},
			{"one", "mistral:7b", 403},
			{"all", "phi3:mini", 200},
			{"all", "gpt-4o", 404},
		} {
			answers := map[string]reply{
				"chat":  r.chat(c.model, "hello", "", bearer(c.key)...),
				"route": r.do("POST", "http://api/v1/route", chatBody(c.model, "hello", ""), bearer(c.key)...),
				"model": r.do("GET", "http://api/v1/models/"+c.model, "", bearer(c.key)...),
			}
			for what, a := range answers {
				if a.status != c.status {
					t.Errorf("%s asks %s for %s: %d, want %d: %s", c.key, what, c.model, a.status, c.status, a.body)
				}
				if c.status != http.StatusForbidden {
					continue
				}
				if e := a.failure(t); e.Type != "invalid_request_error" || e.Code != "model_not_found" || e.Param != "model" {
					t.Errorf("%s asks %s for %s: %+v", c.key, what, c.model, e)
				}
			}
		}
		for key, want := range map[string][]string{
			"one": {"recruit-auto", "mistral"},
			"tasks": {
				"recruit/resume_parsing", "recruit/bias_detection", "recruit/matching_logic", "recruit/script_generation",
				"recruit/report_generation", "recruit/general",
			},
		} {
			var list struct{ Data []modelObject }
			if err := json.Unmarshal([]byte(r.do("GET", "http://api/v1/models", "", bearer(key)...).body), &list); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range list.Data {
				got = append(got, m.ID)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s sees %v, want %v", key, got, want)
			}
		}
	})
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "", true},
		{"*", "hf.co/a/b:q4", true},
		{"recruit/*", "recruit/general", true},
		{"recruit/*", "recruit-auto", false},
		{"*:7b", "deepseek-llm:7b", true},
		{"*:7b", "deepseek-llm:7b-chat", false},
		{"a*b*c", "a-b-c", true},
		{"a*b*c", "a-c-b", false},
		{"a*a", "a", false},
		{"**", "x", true},
		{"mistral", "mistral2", false},
	} {
		if got := glob(c.pattern, c.name); got != c.want {
			t.Errorf("%q on %q: %v", c.pattern, c.name, got)
		}
	}
}

// A key's requests are counted over a minute that slides, and every answer
// says what is left of them.
func TestRateLimit(t *testing.T) {
	file := keyFile(t, Client{Name: "slow", RPM: 3}, Client{Name: "free"})
	inBubble(t, rigConfig{proxy: Config{KeysFile: file}}, func(t *testing.T, r *rig) {
		const url, body = "http://api/v1/route", `{"model":"phi3:mini","messages":[{"role":"user","content":"x"}]}`
		ask := func() reply { return r.do("POST", url, body, bearer("slow")...) }
		check := func(a reply, status int, left, reset string) {
			t.Helper()
			h := a.header
			if a.status != status || h.Get("x-ratelimit-limit-requests") != "3" || h.Get("x-ratelimit-remaining-requests") != left ||
				h.Get("x-ratelimit-reset-requests") != reset {
				t.Errorf("%d %v, want %d, %s left, full in %s", a.status, h, status, left, reset)
			}
		}
		check(ask(), 200, "2", "20s")
		check(ask(), 200, "1", "40s")
		time.Sleep(5 * time.Second)
		check(r.do("GET", "http://api/v1/models", "", bearer("slow")...), 200, "1", "35s") // reading costs nothing
		check(ask(), 200, "0", "55s")
		a := ask()
		check(a, 429, "0", "55s")
		if e := a.failure(t); e.Code != "rate_limit_exceeded" || e.Type != "requests" || a.header.Get("Retry-After") != "15" {
			t.Errorf("%+v, Retry-After %q", e, a.header.Get("Retry-After"))
		}
		time.Sleep(15 * time.Second) // as it was told
		check(ask(), 200, "0", "1m0s")
		time.Sleep(time.Minute)
		check(ask(), 200, "2", "20s")
		for range 10 {
			if a := r.do("POST", url, body, bearer("free")...); a.status != 200 || a.header.Get("x-ratelimit-limit-requests") != "" {
				t.Errorf("without a limit: %d %v", a.status, a.header)
			}
		}
	})
}

// What a limit turned away, failed or cancelled frees its place.
func TestConcurrencyLimit(t *testing.T) {
	file := keyFile(t, Client{Name: "two", Concurrency: 2})
	inBubble(t, rigConfig{proxy: Config{KeysFile: file}}, func(t *testing.T, r *rig) {
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for i := range 2 { // llama3 takes seconds to load
			running.Go(func() {
				_, _ = r.send(ctx, "POST", "http://api/v1/chat/completions", chatBody("llama3", strconv.Itoa(i), ""), bearer("two")...)
			})
		}
		synctest.Wait()
		writeKeys(t, file, Client{Name: "two", Concurrency: 2, Tenant: "changed"}) // what is under way still counts
		time.Sleep(recheckKeys)
		for range 5 {
			a := r.chat("phi3:mini", "a third", "", bearer("two")...)
			if e := a.failure(t); e.Status != 429 || e.Code != "rate_limit_exceeded" || a.header.Get("Retry-After") != "2" {
				t.Errorf("%+v, Retry-After %q", e, a.header.Get("Retry-After"))
			}
		}
		if a := r.do("GET", "http://api/v1/models", "", bearer("two")...); a.status != 200 {
			t.Errorf("reading: %d", a.status)
		}
		cancel()
		running.Wait()
		synctest.Wait()
		for range 3 {
			if a := r.chat("phi3:mini", "now", "", bearer("two")...); a.status != 200 {
				t.Errorf("after the others left: %d %s", a.status, a.body)
			}
			if a := r.chat("gpt-4o", "fails", "", bearer("two")...); a.status != 404 {
				t.Errorf("%d %s", a.status, a.body)
			}
		}
		r.rest()
	})
}

// Answers are shared within a tenant and never beyond it.
func TestTenantsShareAmongThemselves(t *testing.T) {
	file := keyFile(t, Client{Name: "a1", Tenant: "a"}, Client{Name: "a2", Tenant: "a"}, Client{Name: "b"}, Client{Name: "c"})
	inBubble(t, rigConfig{proxy: Config{KeysFile: file}}, func(t *testing.T, r *rig) {
		for _, c := range []struct{ key, want string }{{"a1", "miss"}, {"a2", "hit"}, {"b", "miss"}, {"c", "miss"}, {"b", "hit"}} {
			a := r.chat("recruit/report_generation", "the same", "", bearer(c.key)...)
			if got := a.header.Get("Tenure-Cache"); got != c.want {
				t.Errorf("%s: %d %s, want %s", c.key, a.status, got, c.want)
			}
		}
	})
}

// A batch key's requests wait as batch work, whatever they say of themselves.
func TestBatchKey(t *testing.T) {
	file := keyFile(t, Client{Name: "night", Priority: "batch"}, Client{Name: "day"})
	inBubble(t, rigConfig{proxy: Config{KeysFile: file}}, func(t *testing.T, r *rig) {
		var running sync.WaitGroup
		for _, key := range []string{"night", "day"} {
			running.Go(func() {
				_, _ = r.send(t.Context(), "POST", "http://api/v1/chat/completions",
					chatBody("llama3", key, `,"service_tier":"priority"`), bearer(key)...)
			})
		}
		synctest.Wait()
		got := map[residency.Class]int{}
		for _, q := range r.scheduler.State().Waiting {
			got[q.Class] += q.Count
		}
		if got[residency.Batch] != 1 || got[residency.Interactive] != 1 {
			t.Errorf("waiting: %v", got)
		}
		running.Wait()
		r.rest()
	})
}

// The file may change while the server runs. What is wrong with it is said
// once, and nobody is let in or out by a mistake.
func TestKeyFileChanges(t *testing.T) {
	const fixed = "a-key-of-the-environment"
	file := filepath.Join(t.TempDir(), "keys")
	cfg := rigConfig{proxy: Config{KeysFile: file, Keys: []Key{HashKey(fixed)}}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		expect := func(when string, want map[string]int) {
			t.Helper()
			time.Sleep(recheckKeys)
			for key, status := range want {
				if a := r.do("GET", "http://api/v1/models", "", bearer(key)...); a.status != status {
					t.Errorf("%s, %s: %d, want %d", when, key, a.status, status)
				}
			}
		}
		expect("no file", map[string]int{"a": 401, fixed: 200, "": 401})
		writeKeys(t, file, Client{Name: "a", RPM: 1}, Client{Name: "b"})
		expect("created", map[string]int{"a": 200, "b": 200, fixed: 200})
		const chat = "http://api/v1/route"
		body := chatBody("phi3:mini", "x", "")
		if a := r.do("POST", chat, body, bearer("a")...); a.status != 200 {
			t.Errorf("the first: %d", a.status)
		}
		writeKeys(t, file, Client{Name: "a", RPM: 1, Tenant: "t"})
		expect("revoked", map[string]int{"a": 200, "b": 401, fixed: 200})
		if a := r.do("POST", chat, body, bearer("a")...); a.status != 429 {
			t.Errorf("a change of the file gave a fresh minute: %d", a.status)
		}
		const leaked = "sk-tenure-a-key-where-its-hash-belongs"
		if err := os.WriteFile(file, []byte(`{"name":"c","hash":"`+leaked+`"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			expect("broken", map[string]int{"a": 200, "b": 401, "c": 401, leaked: 401, fixed: 200})
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			expect("gone", map[string]int{"a": 200, "b": 401, fixed: 200})
		}
		writeKeys(t, file)
		expect("empty", map[string]int{"a": 401, fixed: 200})

		log := r.log.String()
		if n := strings.Count(log, "key file could not be read"); n != 3 { // absent, broken, gone
			t.Errorf("warned %d times:\n%s", n, log)
		}
		if n := strings.Count(log, "key file read"); n != 3 {
			t.Errorf("read %d times:\n%s", n, log)
		}
		for _, secret := range []string{leaked, fixed} {
			if strings.Contains(log, secret) {
				t.Errorf("%s is in the log", secret)
			}
		}
		if !strings.Contains(log, `"key":"a"`) {
			t.Error("the log does not tell whose requests they were")
		}
	})
}

// Without a single key a file that is set still keeps everybody out.
func TestEmptyKeyFileOpensNothing(t *testing.T) {
	inBubble(t, rigConfig{proxy: Config{KeysFile: keyFile(t)}}, func(t *testing.T, r *rig) {
		for _, key := range []string{"", "x"} {
			if a := r.chat("phi3:mini", "hello", "", bearer(key)...); a.status != http.StatusUnauthorized || a.header.Get("WWW-Authenticate") == "" {
				t.Errorf("%q: %d", key, a.status)
			}
		}
	})
}

// A key that is in the environment and in the file has the file's limits.
func TestFileLimitsKeysOfTheEnvironment(t *testing.T) {
	file := keyFile(t, Client{Name: "a-key-that-is-in-both", Models: []string{"mistral"}})
	cfg := rigConfig{proxy: Config{KeysFile: file, Keys: []Key{HashKey("a-key-that-is-in-both")}}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		if a := r.chat("phi3:mini", "hello", "", bearer("a-key-that-is-in-both")...); a.status != http.StatusForbidden {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

// Requests and changes of the file meet.
func TestKeyFileRace(t *testing.T) {
	file := keyFile(t, Client{Name: "a", RPM: 100_000, Concurrency: 50})
	inBubble(t, rigConfig{proxy: Config{KeysFile: file}}, func(t *testing.T, r *rig) {
		var running sync.WaitGroup
		for range 8 {
			running.Go(func() {
				for range 20 {
					if a, err := r.send(t.Context(), "POST", "http://api/v1/route", chatBody("phi3:mini", "x", ""), bearer("a")...); err != nil || a.status != 200 {
						t.Errorf("%v %d %s", err, a.status, a.body)
					}
					time.Sleep(300 * time.Millisecond)
				}
			})
		}
		for i := range 10 {
			time.Sleep(recheckKeys / 2)
			writeKeys(t, file, Client{Name: "a", RPM: 100_000 - i, Concurrency: 50}, Client{Name: fmt.Sprint(i)})
		}
		running.Wait()
		holder, ok := r.server.keys.find("a")
		if !ok || holder.active.Load() != 0 {
			t.Errorf("%v, %d requests are counted as under way", ok, holder.active.Load())
		}
	})
}

func TestParseKeys(t *testing.T) {
	hash := func(s string) string { b, _ := HashSecret(s).MarshalText(); return string(b) }
	line := func(name, more string) string {
		return `{"name":"` + name + `","hash":"` + hash(name) + `"` + more + "}\n"
	}
	good := "# a comment\n\n" + line("ats", `,"tenant":"acme","models":["recruit/*"],"rpm":60,"concurrency":4,"priority":"batch","created":"2026-01-02T03:04:05Z"`) +
		"  " + line("other", "")
	clients, err := ParseKeys([]byte(good))
	if err != nil || len(clients) != 2 || clients[0].RPM != 60 || clients[0].class() != residency.Batch || clients[1].tenant() != "other" {
		t.Fatalf("%v %+v", err, clients)
	}
	const secret = "sk-tenure-not-to-be-shown"
	for _, c := range []struct{ text, want string }{
		{line("a", "") + "\n" + line("a", ""), "line 3: the name a is taken by line 1"},
		{line("a", "") + strings.Replace(line("a", ""), `"a"`, `"b"`, 1), "line 2: the key of b is that of line 1, too"},
		{`{"name":"a"}`, "line 1: a: hash is missing"},
		{`{"name":"a","hash":"` + secret + `"}`, "line 1: hash is not"},
		{`{"name":"a","hash":"sha256:` + strings.Repeat("x", 64) + `"}`, "line 1: hash is not"},
		{`{"` + secret + `":1}`, "line 1: it is not one JSON object"},
		{secret, "line 1: it is not one JSON object"},
		{strings.TrimSpace(line("a", "")) + secret, "line 1: it is not one JSON object"},
		{line("a b", ""), "line 1: name needs"},
		{line("a", `,"tenant":"x y"`), "line 1: a: tenant needs"},
		{line("a", `,"models":[]`), "line 1: a: models is empty"},
		{line("a", `,"models":["x y"]`), "line 1: a: a model's pattern"},
		{line("a", `,"rpm":-1`), "line 1: a: rpm is -1"},
		{line("a", `,"concurrency":1000000000`), "line 1: a: concurrency"},
		{line("a", `,"priority":"high"`), "line 1: a: priority"},
		{line("", "") + "null\n" + line("c", `,"rpm":2000000`), "line 3: c: rpm is 2000000"},
	} {
		_, err := ParseKeys([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: got %v, want %s", c.text, err, c.want)
		}
	}
}

// Every key file is either refused, without a word of what may be a key, or
// means the same when it is written again.
func FuzzParseKeys(f *testing.F) {
	for _, name := range []string{"a", "b"} {
		line, err := json.Marshal(Client{Name: name, Hash: HashSecret(name), Models: []string{"recruit/*"}, RPM: 60, Created: time.Unix(1, 0).UTC()})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(line, '\n'))
		f.Add(append([]byte("# x\n\n"), line...))
	}
	f.Add([]byte(`{"name":"a","hash":"sk-tenure-secret"}`))
	f.Add([]byte("\"sk-tenure-secret\"\n{}\n[]\nnull"))
	f.Fuzz(func(t *testing.T, src []byte) {
		clients, err := ParseKeys(src)
		if err != nil {
			if strings.Contains(err.Error(), "sk-tenure-") && !strings.Contains(string(src), `"name"`) {
				t.Errorf("%q: the error tells too much: %v", src, err)
			}
			return
		}
		var again []byte
		for _, c := range clients {
			if c.Hash == (KeyHash{}) || c.RPM < 0 || c.Concurrency < 0 {
				t.Errorf("%q: accepted %+v", src, c)
			}
			line, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			again = append(append(again, line...), '\n')
		}
		twice, err := ParseKeys(again)
		if err != nil || fmt.Sprint(twice) != fmt.Sprint(clients) {
			t.Errorf("%q: %v\n%v\n%v", src, err, clients, twice)
		}
	})
}

func TestNewSecret(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		s := NewSecret()
		if len(s) != len("sk-tenure-")+43 || !strings.HasPrefix(s, "sk-tenure-") || seen[s] {
			t.Fatalf("got %q", s)
		}
		seen[s] = true
	}
}
