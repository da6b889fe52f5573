package proxy

import (
	"net/http"
	"testing"
)

func TestCORS(t *testing.T) {
	const listed, chat = "https://chat.example", "http://api/v1/chat/completions"
	cfg := rigConfig{proxy: Config{Origins: []string{listed, "http://localhost:3000"}, Keys: []Key{HashKey("a-key-that-opens")}}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		ask := []string{
			"Origin", listed, "Access-Control-Request-Method", "POST",
			"Access-Control-Request-Headers", "authorization,Content-Type, x-stainless-os,x-stainless-some-new-one,x-evil",
		}
		a := r.do("OPTIONS", chat, "", ask...)
		for name, want := range map[string]string{
			"Access-Control-Allow-Origin":  listed,
			"Access-Control-Allow-Headers": "authorization, content-type, x-stainless-os, x-stainless-some-new-one",
			"Access-Control-Allow-Methods": "GET, POST, DELETE",
			"Vary":                         "Origin",
		} {
			if got := a.header.Get(name); a.status != http.StatusNoContent || got != want {
				t.Errorf("preflight: %d, %s: %q, want %q", a.status, name, got, want)
			}
		}
		for _, key := range []string{"a-key-that-opens", "a-wrong-one"} { // a page must be able to read why
			a := r.chat("phi3:mini", "hello", "", "Origin", listed, "Authorization", "Bearer "+key)
			if a.header.Get("Access-Control-Allow-Origin") != listed || a.header.Get("Access-Control-Expose-Headers") != "*" {
				t.Errorf("%s: %d %v", key, a.status, a.header)
			}
			if a.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Error("credentials are allowed")
			}
		}
		for _, origin := range []string{"https://evil.example", "https://chat.example.evil", "http://chat.example", "null", ""} {
			ask[1] = origin
			for _, a := range []reply{r.do("OPTIONS", chat, "", ask...), r.chat("phi3:mini", "hello", "", "Origin", origin, "Api-Key", "a-key-that-opens")} {
				if got := a.header.Get("Access-Control-Allow-Origin"); got != "" || a.status == http.StatusNoContent || a.header.Get("Vary") != "Origin" {
					t.Errorf("%q: %d, allows %q", origin, a.status, got)
				}
			}
		}
		if a := r.do("OPTIONS", "http://admin/admin/state", "", "Origin", listed, "Access-Control-Request-Method", "GET"); a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("the admin side answers pages: %v", a.header)
		}
	})
}

func TestCORSIsOffByDefault(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		a := r.do("OPTIONS", "http://api/v1/models", "", "Origin", "http://localhost:3000", "Access-Control-Request-Method", "GET")
		if a.status != http.StatusMethodNotAllowed || a.header.Get("Access-Control-Allow-Origin") != "" || a.header.Get("Vary") != "" {
			t.Errorf("%d %v", a.status, a.header)
		}
	})
}

// Without keys, a page of elsewhere is let in only when its origin is listed.
func TestCORSWithoutKeys(t *testing.T) {
	const listed = "https://chat.example"
	cfg := rigConfig{proxy: Config{Origins: []string{listed}, Loopback: true}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		for origin, want := range map[string]int{listed: 200, "https://evil.example": 403} {
			if a := r.chat("phi3:mini", "hello", "", "Host", "localhost", "Origin", origin); a.status != want {
				t.Errorf("%s: %d, want %d", origin, a.status, want)
			}
		}
	})
}
