package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"tenure/residency"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Admin returns the handler of the admin side. It is for the operator alone:
// on another listener, behind a key of its own, and deaf to web pages.
func (s *Server) Admin() http.Handler {
	g := newEngine()
	g.NoRoute(func(c *gin.Context) {
		refuse(c, problem(nil, outcomeCaller, http.StatusNotFound, "unknown_url", 0, "Unknown request URL: "+clip(c.Request.URL.Path)))
	})
	g.NoMethod(func(c *gin.Context) {
		refuse(c, problem(nil, outcomeCaller, http.StatusMethodNotAllowed, "method_not_allowed", 0, c.Request.Method+" is not allowed here."))
	})
	s.health(g)
	operator := g.Group("/", s.operatorOnly, s.changesOnly)
	operator.GET("/admin/state", func(c *gin.Context) { c.JSON(http.StatusOK, s.State()) })
	operator.GET("/metrics", gin.WrapH(promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{})))
	s.operate(operator)
	return g
}

// operatorOnly checks the admin key. Without one, the request must be meant
// for this machine by name: a web page whose host was made to resolve here is
// turned away.
func (s *Server) operatorOnly(c *gin.Context) {
	if s.cfg.AdminKey == (Key{}) {
		if !loopbackHost(c.Request.Host) {
			refuse(c, problem(nil, outcomeKey, http.StatusForbidden, "host_not_allowed", 0,
				"Without TENURE_ADMIN_KEY the admin side answers only to a loopback host name."))
		}
		return
	}
	if _, ok := find([]Key{s.cfg.AdminKey}, presented(c.Request.Header)); !ok {
		c.Header("WWW-Authenticate", "Bearer")
		refuse(c, problem(nil, outcomeKey, http.StatusUnauthorized, "invalid_api_key", 0,
			"The admin key is missing or wrong. Send it as: Authorization: Bearer KEY"))
	}
}

func refuse(c *gin.Context, e *Error) {
	c.Data(e.Refusal.Status, "application/json", e.Refusal.AppendJSON(nil))
	c.Abort()
}

func loopbackHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// State is what GET /admin/state tells and `tenure status` prints.
type State struct {
	Version   string          `json:"version"`
	Started   time.Time       `json:"started"`
	Simulated bool            `json:"simulated"`
	Draining  bool            `json:"draining"`
	Ollama    OllamaState     `json:"ollama"`
	GPU       CardState       `json:"gpu"`
	Residency residency.State `json:"residency"`
	Memory    MemoryState     `json:"memory"`
	Breakers  []Breaker       `json:"breakers"`
	Trouble   string          `json:"trouble,omitempty"` // what an operator must mend, though Ollama answers
}

// OllamaState is what was last seen of the server.
type OllamaState struct {
	URL       string           `json:"url"` // without a password
	Reachable bool             `json:"reachable"`
	Since     time.Time        `json:"since"`
	Version   string           `json:"version"`
	Installed []string         `json:"installed"`
	Resident  []OllamaResident `json:"resident"`
}

// OllamaResident is a model in memory by Ollama's own account.
type OllamaResident struct {
	Name    string          `json:"name"`
	Size    residency.Bytes `json:"size_bytes"`
	VRAM    residency.Bytes `json:"size_vram_bytes"`
	Context int             `json:"context"`
}

// State returns a view of the whole server.
func (s *Server) State() State {
	st := State{
		Version: s.cfg.Version, Started: s.started, Simulated: s.cfg.Simulated, Draining: s.draining.Load(),
		Residency: s.residency.State(),
	}
	st.Memory, st.Trouble = s.memory(&st.Residency), s.watched.trouble()
	st.Breakers = s.breakers.state()
	b := &s.backend
	b.mu.Lock()
	defer b.mu.Unlock()
	st.Ollama = OllamaState{URL: s.ollama.URL(), Reachable: b.up, Since: b.since, Version: b.version, Installed: []string{}, Resident: []OllamaResident{}}
	for _, m := range b.models {
		st.Ollama.Installed = append(st.Ollama.Installed, ShortName(m.Name))
	}
	for _, r := range b.resident {
		st.Ollama.Resident = append(st.Ollama.Resident, OllamaResident{
			Name: ShortName(r.Name), Size: r.Size, VRAM: r.VRAM, Context: r.Context,
		})
	}
	st.GPU = s.cardState(st.Residency.Residents, st.Ollama.Resident)
	return st
}
