package proxy

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
	"tenure/routing"
)

// catalogWith is the built-in models with one task more, which has times of its own.
func catalogWith(t *testing.T, timeouts string) *routing.Catalog {
	t.Helper()
	c, err := routing.ParseCatalog([]byte(`models:
  phi3:mini: {tier: 0, memory: 2, num_ctx: 4096}
  mistral: {tier: 1, memory: 7, num_ctx: 8192}
  llama3: {tier: 2, memory: 8, num_ctx: 8192}
tasks:
  general: {model: phi3:mini, max_tokens: 1024}
  parsing: {model: mistral, max_tokens: 1024}
  hurried: {model: llama3, max_tokens: 1024, timeouts: `+timeouts+`}
`), ShortName)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Each of the six clocks has an error of its own, as a status before the stream
// began and as an event after, and a name in logs and metrics.
func TestClocks(t *testing.T) {
	for _, c := range []struct {
		clock   string
		cfg     rigConfig
		fault   ollamasim.Fault
		model   string
		after   time.Duration // when the client is told
		status  int
		code    string
		outcome string
		mid     bool // the stream has begun
	}{
		{
			clock: "connect", model: "mistral", after: 5 * time.Second,
			status: http.StatusServiceUnavailable, code: "upstream_unreachable", outcome: outcomeRefused,
		},
		{
			clock: "queue", cfg: rigConfig{proxy: Config{Timeouts: routing.Timeouts{Queue: 3 * time.Second}}},
			fault: ollamasim.Fault{Kind: ollamasim.SlowLoad, Delay: time.Minute}, model: "llama3", after: 3 * time.Second,
			status: http.StatusTooManyRequests, code: "queue_timeout", outcome: outcomeQueued,
		},
		{
			clock: "load", cfg: rigConfig{residency: residency.Config{LoadTimeout: 6 * time.Second}},
			fault: ollamasim.Fault{Kind: ollamasim.SlowLoad, Delay: time.Minute}, model: "llama3", after: 6 * time.Second, // and an unload
			status: http.StatusGatewayTimeout, code: "model_load_timeout", outcome: outcomeLoadTime,
		},
		{
			clock: "first byte", cfg: rigConfig{proxy: Config{Timeouts: routing.Timeouts{FirstByte: 4 * time.Second, Idle: time.Hour}}},
			fault: ollamasim.Fault{Kind: ollamasim.HangFirst, Times: 1}, model: "mistral", after: 4 * time.Second,
			status: http.StatusGatewayTimeout, code: "first_byte_timeout", outcome: outcomeFirstByte,
		},
		{
			clock: "idle", cfg: rigConfig{proxy: Config{Timeouts: routing.Timeouts{FirstByte: time.Hour, Idle: 3 * time.Second}}},
			fault: ollamasim.Fault{Kind: ollamasim.HangMid, After: 3, Times: 1}, model: "mistral", after: 3 * time.Second,
			status: http.StatusGatewayTimeout, code: "idle_timeout", outcome: outcomeIdle, mid: true,
		},
		{
			clock: "total", cfg: rigConfig{proxy: Config{Timeouts: routing.Timeouts{Total: time.Second}}},
			fault: ollamasim.Fault{Kind: ollamasim.HangMid, After: 3, Times: 1}, model: "mistral", after: time.Second,
			status: http.StatusGatewayTimeout, code: "total_timeout", outcome: outcomeTotal, mid: true,
		},
	} {
		for _, stream := range []string{"", `,"stream":true`} {
			t.Run(c.clock+stream, func(t *testing.T) {
				lost := make(chan struct{})
				if c.clock == "connect" { // whose address swallows what is sent to it
					c.cfg.dial = func(next dialFunc) dialFunc {
						return func(ctx context.Context, network, addr string) (net.Conn, error) {
							select {
							case <-lost:
								<-ctx.Done()
								return nil, ctx.Err()
							default:
								return next(ctx, network, addr)
							}
						}
					}
				}
				inBubble(t, c.cfg, func(t *testing.T, r *rig) {
					if c.clock == "connect" {
						close(lost)
						r.server.ollama.Close() // no kept connection
					}
					if c.fault.Kind != "" {
						r.sim.Inject(c.fault)
					}
					began := time.Now()
					a := r.chat(c.model, "hello", stream)
					if took := time.Since(began); took < c.after || took > c.after+time.Second {
						t.Errorf("told after %v, want %v", took, c.after)
					}
					switch {
					case c.mid && stream != "":
						data, _ := events(t, a.body)
						if last := data[len(data)-1]; a.status != http.StatusOK || len(data) < 2 || !strings.Contains(last, `"code":"`+c.code+`"`) {
							t.Errorf("%d, the last of %d events %q, want %s", a.status, len(data), last, c.code)
						}
					default:
						if e := a.failure(t); e.Status != c.status || e.Code != c.code {
							t.Errorf("got %+v, want %d %s", e, c.status, c.code)
						}
						if retry := c.status != http.StatusGatewayTimeout; retry != (a.header.Get("Retry-After") != "") {
							t.Errorf("%d with Retry-After %q", a.status, a.header.Get("Retry-After"))
						}
					}
					if metrics := r.do(http.MethodGet, "http://admin/metrics", "", "Host", "localhost").body; !strings.Contains(metrics, `outcome="`+c.outcome+`"`) {
						t.Errorf("the metrics lack the outcome %s", c.outcome)
					}
					if log := r.log.String(); !strings.Contains(log, `"outcome":"`+c.outcome+`"`) {
						t.Errorf("the log lacks the outcome %s", c.outcome)
					}
				})
			})
		}
	}
}

// A task's own times hold for it, and for it alone.
func TestClocksOfATask(t *testing.T) {
	cfg := rigConfig{proxy: Config{Timeouts: routing.Timeouts{Queue: time.Hour}}}
	cfg.catalog = catalogWith(t, "{queue: 2s, first_byte: 7s, idle: 3s, total: 30s}")
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		told := func(model, code string, after time.Duration) {
			t.Helper()
			began := time.Now()
			if e := r.chat(model, "hello", "").failure(t); e.Code != code || time.Since(began).Round(time.Second) != after {
				t.Errorf("%s: %s after %v, want %s after %v", model, e.Code, time.Since(began), code, after)
			}
			r.sim.Clear()
			time.Sleep(2 * time.Minute)
		}
		told("recruit/hurried", "queue_timeout", 2*time.Second) // its load takes 5 s
		if a := r.chat("llama3", "hello", ""); a.status != http.StatusOK {
			t.Fatalf("without a hurry: %d %s", a.status, a.body)
		}
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangFirst, Times: 1})
		told("recruit/hurried", "first_byte_timeout", 7*time.Second)
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangFirst, Times: 1})
		told("recruit/parsing", "first_byte_timeout", 2*time.Minute)
		r.chat("llama3", "hello", "")
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangMid, Times: 1, After: 1})
		told("recruit/hurried", "idle_timeout", 3*time.Second)
	})
}
