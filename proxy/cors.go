package proxy

import (
	"net/http"
	"slices"
	"strings"
)

// cors lets web pages of the origins that are listed, and no others, call the
// API and read its answers. Cookies play no part: credentials are never
// allowed, and a page has to know a key as any client has.
func (s *Server) cors(next http.Handler) http.Handler {
	if len(s.cfg.Origins) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, origin := w.Header(), r.Header.Get("Origin")
		h.Add("Vary", "Origin")
		if !s.listed(origin) {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Expose-Headers", "*") // all that the API sends: Tenure-*, x-request-id, Retry-After, x-ratelimit-*
		if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
			next.ServeHTTP(w, r)
			return
		}
		h.Add("Vary", "Access-Control-Request-Headers")
		h.Set("Access-Control-Allow-Methods", "GET, POST, DELETE")
		if names := allowedHeaders(r.Header.Values("Access-Control-Request-Headers")); len(names) > 0 {
			h.Set("Access-Control-Allow-Headers", strings.Join(names, ", "))
		}
		h.Set("Access-Control-Max-Age", "600") // seconds
		w.WriteHeader(http.StatusNoContent)
	})
}

func (s *Server) listed(origin string) bool {
	return origin != "" && slices.Contains(s.cfg.Origins, origin)
}

// allowedHeaders picks of the headers a page wants to send those that clients
// of this API have: a browser refuses the request for any other. OpenAI's SDKs
// send a dozen x-stainless- ones, newer releases more.
func allowedHeaders(asked []string) []string {
	var names []string
	for _, list := range asked {
		for name := range strings.SplitSeq(list, ",") {
			switch name = strings.ToLower(strings.TrimSpace(name)); name {
			case "accept", "api-key", "authorization", "cache-control", "content-type", "idempotency-key", "user-agent",
				"x-api-key", "x-request-id":
			default:
				if !strings.HasPrefix(name, "openai-") && !strings.HasPrefix(name, "tenure-") && !strings.HasPrefix(name, "x-stainless-") {
					continue
				}
			}
			names = append(names, name)
		}
	}
	return names
}
