package ollama

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/ollama/ollama/types/model"
)

// ParseHost reads the forms of OLLAMA_HOST that Ollama itself understands:
// host, host:port, :port, [v6]:port, scheme://host:port/path. What is missing
// is 127.0.0.1, port 11434 (80 and 443 when a scheme is given). A server's
// "listen on all" address stands for this machine. Unlike Ollama, which falls
// back on the default, it refuses a port or scheme it cannot use.
func ParseHost(s string) (*url.URL, error) {
	scheme, rest, ok := strings.Cut(strings.TrimSpace(s), "://")
	port := "11434"
	switch {
	case !ok && scheme == "ollama.com":
		scheme, rest = "https", "ollama.com:443"
	case !ok:
		scheme, rest = "http", scheme
	case scheme == "http":
		port = "80"
	case scheme == "https":
		port = "443"
	default:
		return nil, fmt.Errorf("scheme %q: want http or https", scheme)
	}
	rest, path, _ := strings.Cut(rest, "/")
	host := rest
	if h, p, err := net.SplitHostPort(rest); err == nil {
		host, port = h, cmp.Or(p, port)
	} else if strings.HasPrefix(rest, "[") && strings.HasSuffix(rest, "]") {
		host = rest[1 : len(rest)-1]
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fmt.Errorf("port %q: want 1 to 65535", port)
	}
	host = cmp.Or(host, "127.0.0.1")
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.Is6() {
			host = "localhost" // either family: a dual-stack server answers on both
		}
	} else if err != nil && strings.ContainsAny(host, " \t@?#[]:%") {
		return nil, fmt.Errorf("host %q is neither a name nor an address", host)
	}
	u := &url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port)}
	if path != "" {
		u.Path = "/" + path
	}
	return u, nil
}

// Canonical returns the one spelling of a model's name that identifies it:
// lower case, with its tag, without the default registry and namespace, as
// /api/tags lists it. "mistral", "library/Mistral" and
// "registry.ollama.ai/library/mistral:latest" are all "mistral:latest". A name
// that Ollama would not accept comes back in lower case.
func Canonical(name string) string {
	n := model.ParseName(strings.TrimSpace(name))
	if !n.IsValid() {
		return strings.ToLower(strings.TrimSpace(name))
	}
	return strings.ToLower(n.DisplayShortest())
}
