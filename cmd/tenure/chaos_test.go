//go:build e2e

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/proxy/ollama/ollamatest"
)

const (
	chaosClients  = 32
	chaosDeadline = 60 * time.Second // beyond what tenure's clocks allow in all
	chaosBack     = 60 * time.Second // until every task is served by its own model again
)

// TestChaos breaks what can break, one thing after the other, while 32 clients
// ask steadily: with answers that are kept and shared, whole and as streams, of
// all tasks, some leaving early. Every client must get an answer or an error in
// form, no answer may be wrong or cut short, kept ones included, seats and
// goroutines must come to rest, and service must come back by itself.
func TestChaos(t *testing.T) {
	root, err := ollamatest.Root()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "tenure")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("building tenure: %v\n%s", err, out)
	}
	for _, backend := range []string{"simulated", "real"} {
		t.Run(backend, func(t *testing.T) {
			c := newChaos(t, root, bin, backend == "simulated")
			defer c.print()
			for _, f := range c.faults() {
				if !t.Run(f.name, func(t *testing.T) { c.run(t, f) }) {
					return // what comes after would tell of it once more
				}
			}
		})
	}
}

// chaosFault breaks something and puts it right again.
type chaosFault struct {
	name string
	do   func(t *testing.T)
}

// tally is what became of the requests under one fault.
type tally struct {
	fault                              string
	requests, answered, hits           int
	cancelled, away, lost, wrong, leak int
	refused                            map[string]int // by code
	back                               time.Duration
}

type chaos struct {
	t        *testing.T
	rig      *rig
	sim      *ollamasim.Sim     // or
	server   *ollamatest.Server // the one that is there
	wire     *forwarder
	settings []string
	url      string
	client   *http.Client
	texts    map[[2]string]string // right answers, by model and prompt
	prompts  map[string][]string  // by task
	tasks    []string
	rest     float64 // goroutines
	rows     []*tally

	mu    sync.Mutex
	now   *tally
	ended atomic.Int64 // when tenure was last told to end, in Unix nanoseconds
	abort atomic.Bool  // without a chance to say so
}

func newChaos(t *testing.T, root, bin string, simulated bool) *chaos {
	t.Helper()
	texts, err := ollamatest.Documents(root)
	if err != nil {
		t.Fatal(err)
	}
	c := &chaos{
		t: t, rig: &rig{bin: bin, texts: texts, simulated: simulated},
		client:  &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: chaosClients}},
		texts:   map[[2]string]string{},
		prompts: map[string][]string{},
	}
	if simulated {
		c.rig.back, c.sim = startSim(t)
	} else {
		// A queue that can be filled.
		if c.server, err = ollamatest.Start(t.Context(), root, ollamatest.Config{Log: filepath.Join(t.ArtifactDir(), "ollama.log"), Env: []string{"OLLAMA_MAX_QUEUE=4"}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.server.Stop(); err != nil {
				t.Error(err)
			}
		})
		must := func(err error) {
			if err != nil {
				t.Error(err)
			}
		}
		c.rig.back = &ollamaBackend{
			url: c.server.URL(), kill: func() { must(c.server.Kill()) }, restart: func() { must(c.server.Restart(context.Background())) },
		}
	}
	c.wire = newForwarder(t, c.rig.back.url.Host)
	c.rig.back.url = &url.URL{Scheme: "http", Host: c.wire.addr}
	api := freeAddress(t)
	c.url = "http://" + api + "/v1/chat/completions"
	c.settings = []string{
		"TENURE_LISTEN=" + api, "TENURE_LEDGER=none", "TENURE_LOG_LEVEL=info",
		"TENURE_CONNECT_TIMEOUT=1s", "TENURE_QUEUE_TIMEOUT=15s", "TENURE_LOAD_TIMEOUT=20s", "TENURE_FIRST_BYTE_TIMEOUT=8s",
		"TENURE_IDLE_TIMEOUT=4s", "TENURE_TOTAL_TIMEOUT=20s", "TENURE_BREAKER_PAUSE=3s", "TENURE_STOP_TIMEOUT=3s",
	}
	c.rig.start(t, c.settings...)
	for _, w := range c.rig.work() {
		c.tasks = append(c.tasks, w.task)
		for i := range 4 {
			c.prompts[w.task] = append(c.prompts[w.task], fmt.Sprintf("%s\n\nCandidate number %d", w.text, i))
		}
	}
	c.learn(t)
	c.load(t, func() { time.Sleep(3 * time.Second) }) // connections are made
	c.settle(t)
	c.rest = c.goroutines(t)
	return c
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// learn asks every model for its answer to every prompt that it may be given,
// past the cache and before anything is broken.
func (c *chaos) learn(t *testing.T) {
	t.Helper()
	for _, model := range []string{"phi3:mini", "deepseek-llm:7b", "mistral", "llama3"} {
		for _, prompts := range c.prompts {
			for _, prompt := range prompts {
				a := c.ask(t.Context(), model, prompt, false, "no-store")
				if a.code != "" || a.err != nil {
					t.Fatalf("%s: %s %v", model, a.code, a.err)
				}
				c.texts[[2]string{model, prompt}] = a.text
			}
		}
	}
}

// heard is what a client got.
type heard struct {
	model, cache, cause string
	text                string
	code                string // of a refusal or an error event
	err                 error  // neither an answer nor an error in form
	begun               bool   // headers came
}

// ask asks as clients do. The sampling is fixed: one prompt has one answer.
func (c *chaos) ask(ctx context.Context, model, prompt string, stream bool, cacheControl string) (h heard) {
	body, err := json.Marshal(map[string]any{
		"model": model, "stream": stream, "temperature": 0, "max_tokens": 40,
		"messages": []map[string]string{{"role": "user", "content": prompt}},
	})
	if err != nil {
		return heard{err: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return heard{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	if cacheControl != "" {
		req.Header.Set("Cache-Control", cacheControl)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return heard{err: err}
	}
	defer resp.Body.Close()
	h = heard{model: resp.Header.Get("Tenure-Model"), cache: resp.Header.Get("Tenure-Cache"), cause: resp.Header.Get("Tenure-Cause"), begun: true}
	if stream && resp.StatusCode == http.StatusOK {
		h.err = h.stream(resp.Body)
		return h
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.err = err
		return h
	}
	var a message
	if err := json.Unmarshal(data, &a); err != nil {
		h.err = fmt.Errorf("%d %q: %w", resp.StatusCode, data, err)
		return h
	}
	h.err = h.take(resp.StatusCode, &a)
	return h
}

// message is an answer, a piece of one, or an error.
type message struct {
	Choices []struct {
		Message, Delta struct{ Content string }
		FinishReason   string `json:"finish_reason"`
	}
	Error *struct{ Message, Type, Code string }
}

func (h *heard) take(status int, m *message) error {
	switch {
	case m.Error != nil && m.Error.Code != "" && m.Error.Message != "" && m.Error.Type != "" && status != http.StatusOK:
		h.code = m.Error.Code
	case m.Error == nil && status == http.StatusOK && len(m.Choices) == 1 && m.Choices[0].FinishReason != "":
		h.text = m.Choices[0].Message.Content
	default:
		return fmt.Errorf("%d and neither an answer nor an error", status)
	}
	return nil
}

// stream reads events. A stream ends in [DONE] after a finish reason, or in an
// error event.
func (h *heard) stream(body io.Reader) error {
	lines := bufio.NewScanner(body)
	finished := false
	for lines.Scan() {
		line := lines.Text()
		data, ok := strings.CutPrefix(line, "data: ")
		if name, comment := strings.CutPrefix(line, ": "); comment { // what the headers could not tell any more
			if _, late, ok := strings.Cut(name, "Tenure-Model: "); ok {
				h.model, _, _ = strings.Cut(late, ";")
			}
		}
		if !ok {
			continue
		}
		if data == "[DONE]" {
			if !finished {
				return errors.New("[DONE] without a finish reason")
			}
			return lines.Err()
		}
		var m message
		if err := json.Unmarshal([]byte(data), &m); err != nil {
			return fmt.Errorf("%q: %w", data, err)
		}
		if m.Error != nil {
			h.code = m.Error.Code
			return nil
		}
		for _, choice := range m.Choices {
			h.text += choice.Delta.Content
			finished = finished || choice.FinishReason != ""
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// load keeps the clients asking while do runs.
func (c *chaos) load(t *testing.T, do func()) {
	t.Helper()
	c.mu.Lock()
	c.now = &tally{refused: map[string]int{}}
	c.mu.Unlock()
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range chaosClients {
		all.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(i), 8)) // the same load every time
			for {
				select {
				case <-stop:
					return
				default:
					c.once(t, dice)
				}
			}
		})
	}
	do()
	close(stop)
	all.Wait()
}

// once is one request of one client.
func (c *chaos) once(t *testing.T, dice *rand.Rand) {
	task := c.tasks[dice.IntN(len(c.tasks))]
	prompt := c.prompts[task][dice.IntN(len(c.prompts[task]))]
	ctx, cancel := context.WithTimeout(context.Background(), chaosDeadline)
	defer cancel()
	leaves := dice.IntN(8) == 0
	if leaves {
		leave := time.AfterFunc(time.Duration(dice.IntN(300))*time.Millisecond, cancel)
		defer leave.Stop()
	}
	control := ""
	if dice.IntN(3) == 0 {
		control = "max-age=0"
	}
	began := time.Now()
	h := c.ask(ctx, "recruit/"+task, prompt, dice.IntN(2) == 0, control)

	c.mu.Lock()
	n := c.now
	n.requests++
	pause := time.Duration(0)
	switch {
	case h.err != nil && leaves && ctx.Err() != nil:
		n.cancelled++
	case h.err != nil && c.cutOff(began, h.begun):
		n.away++
		pause = 100 * time.Millisecond
	case h.err != nil:
		n.lost++
		t.Errorf("lost: %s after %v, headers %v: %v", task, time.Since(began), h.begun, h.err)
	case h.code != "":
		n.refused[h.code]++
		pause = 50 * time.Millisecond
	case h.text != c.texts[[2]string{h.model, prompt}]:
		n.wrong++
		t.Errorf("wrong: %s by %s (%s): %q, want %q", task, h.model, h.cache, h.text, c.texts[[2]string{h.model, prompt}])
	default:
		n.answered++
		if h.cache == "hit" {
			n.hits++
		}
	}
	c.mu.Unlock()
	time.Sleep(pause) // as clients back off
}

// cutOff reports whether a request may have been left without a word: tenure
// was killed while it was under way, or was no longer there to hear it.
func (c *chaos) cutOff(began time.Time, begun bool) bool {
	at := c.ended.Load()
	if at == 0 {
		return false
	}
	if c.abort.Load() {
		return true
	}
	return !begun && began.After(time.Unix(0, at).Add(-100*time.Millisecond)) // on the listener's way out
}

// run loads, breaks, waits for service to come back, and takes stock.
func (c *chaos) run(t *testing.T, f chaosFault) {
	row := &tally{fault: f.name}
	c.rows = append(c.rows, row)
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := *c.now
		n.fault, n.back, n.leak, n.wrong = f.name, row.back, row.leak, n.wrong+row.wrong
		*row = n
	}()
	c.load(t, func() {
		time.Sleep(time.Second)
		f.do(t)
		healed := time.Now()
		c.served(t)
		row.back = time.Since(healed)
	})
	c.ended.Store(0)
	c.abort.Store(false)
	row.leak = c.settle(t)
	row.wrong += c.audit(t)
}

// served waits until every task is served by its own model.
func (c *chaos) served(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(chaosBack)
	for _, task := range c.tasks {
		for {
			h := c.ask(t.Context(), "recruit/"+task, c.prompts[task][0], false, "no-store")
			if h.err == nil && h.code == "" && h.cause == "forced" {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s is not served again within %v: %+v", task, chaosBack, h)
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func (c *chaos) goroutines(t *testing.T) float64 {
	t.Helper()
	return c.rig.metric(t, "go_goroutines")
}

// settle waits for rest and returns what is left over of seats, waiting and
// uncounted requests, and goroutines.
func (c *chaos) settle(t *testing.T) (leaked int) {
	t.Helper()
	const slack = 16 // the cache keeps as many that are idle
	c.client.CloseIdleConnections()
	for deadline := time.Now().Add(45 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		st := c.rig.state(t).Residency
		waiting := 0
		for _, w := range st.Waiting {
			waiting += w.Count
		}
		open := int(c.rig.metric(t, "tenure_requests_received_total") - c.rig.metric(t, "tenure_requests_total"))
		extra := 0
		if c.rest > 0 {
			extra = max(int(c.goroutines(t)-c.rest)-slack, 0)
		}
		leaked = st.Leases + waiting + open + extra
		if leaked == 0 {
			return 0
		}
		if time.Now().After(deadline) {
			t.Errorf("leaked: %d seats, %d waiting, %d requests, %d goroutines", st.Leases, waiting, open, extra)
			return leaked
		}
	}
}

// audit asks for everything that may be kept and counts what is not right.
func (c *chaos) audit(t *testing.T) (wrong int) {
	t.Helper()
	for task, prompts := range c.prompts {
		for _, prompt := range prompts {
			h := c.ask(t.Context(), "recruit/"+task, prompt, false, "")
			if h.err != nil || h.code != "" || h.text != c.texts[[2]string{h.model, prompt}] {
				wrong++
				t.Errorf("kept wrong: %s by %s (%s): %s %v %q", task, h.model, h.cache, h.code, h.err, h.text)
			}
		}
	}
	return wrong
}

// print tells all in a table.
func (c *chaos) print() {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tREQUESTS\tANSWERED\tKEPT\tCANCELLED\tAWAY\tLOST\tWRONG\tLEAKED\tBACK\tREFUSED")
	for _, r := range c.rows {
		var refused []string
		for _, code := range slices.Sorted(maps.Keys(r.refused)) {
			refused = append(refused, fmt.Sprintf("%s %d", code, r.refused[code]))
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%v\t%s\n", r.fault, r.requests, r.answered, r.hits, r.cancelled, r.away,
			r.lost, r.wrong, r.leak, r.back.Round(100*time.Millisecond), strings.Join(refused, ", "))
	}
	_ = w.Flush()
	c.t.Logf("%s Ollama, %d clients\n%s", map[bool]string{true: "simulated", false: "real"}[c.sim != nil], chaosClients, b.String())
}

// faults lists what is broken, in order.
func (c *chaos) faults() []chaosFault {
	list := []chaosFault{
		{"none", func(*testing.T) { time.Sleep(2 * time.Second) }},
		{"kill Ollama", func(*testing.T) {
			c.wire.down()
			c.rig.back.kill()
			time.Sleep(3 * time.Second)
			c.rig.back.restart()
			c.wire.up()
		}},
		{"kill runners", c.killRunners},
		{"hang a model", c.hang},
		{"fill Ollama's queue", c.fill},
		{"cut streams", func(*testing.T) {
			for range 20 {
				c.wire.cut()
				time.Sleep(150 * time.Millisecond)
			}
		}},
		{"slow loads", c.slow},
		{"tenure SIGTERM", func(t *testing.T) { c.restart(t, syscall.SIGTERM) }},
		{"tenure SIGKILL", func(t *testing.T) { c.restart(t, syscall.SIGKILL) }},
	}
	if c.sim != nil {
		list = append(list, chaosFault{"errors within answers", func(*testing.T) {
			for _, k := range []ollamasim.Kind{ollamasim.ErrorLine, ollamasim.NoDone, ollamasim.CutMid, ollamasim.LeakSlot} {
				c.sim.Inject(ollamasim.Fault{Kind: k, After: 3, Times: 8})
			}
			time.Sleep(3 * time.Second)
			c.sim.Clear()
		}})
	}
	return list
}

func (c *chaos) killRunners(t *testing.T) {
	for range 3 {
		if c.sim != nil {
			c.sim.Inject(ollamasim.Fault{Kind: ollamasim.DeadRunner, Times: 3})
		} else {
			c.signal(t, syscall.SIGKILL, 3)
		}
		time.Sleep(time.Second)
	}
}

// signal sends to so many of Ollama's runners.
func (c *chaos) signal(t *testing.T, sig syscall.Signal, most int) (sent []int) {
	t.Helper()
	pids, err := c.server.Runners()
	if err != nil {
		t.Error(err)
	}
	for _, pid := range pids[:min(most, len(pids))] {
		if err := syscall.Kill(pid, sig); err == nil {
			sent = append(sent, pid)
		}
	}
	return sent
}

func (c *chaos) hang(t *testing.T) {
	if c.sim != nil {
		c.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangFirst, Model: "mistral"})
		c.sim.Inject(ollamasim.Fault{Kind: ollamasim.HangMid, Model: "deepseek-llm:7b", After: 3})
		time.Sleep(12 * time.Second)
		c.sim.Clear()
		return
	}
	hung := c.signal(t, syscall.SIGSTOP, 1)
	time.Sleep(12 * time.Second)
	for _, pid := range hung {
		_ = syscall.Kill(pid, syscall.SIGCONT) // tenure may have had it replaced
	}
}

// fill keeps Ollama's queue full, on the real one by loads past tenure.
func (c *chaos) fill(*testing.T) {
	if c.sim != nil {
		c.sim.Inject(ollamasim.Fault{Kind: ollamasim.QueueFull})
		time.Sleep(3 * time.Second)
		c.sim.Clear()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for i := range 24 {
		all.Go(func() {
			for ctx.Err() == nil {
				body := fmt.Sprintf(`{"model":"llama3","prompt":"x","stream":false,"options":{"num_predict":1,"num_ctx":%d}}`, 1024+256*(i%2))
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.server.URL().JoinPath("/api/generate").String(), strings.NewReader(body))
				if err != nil {
					return
				}
				if resp, err := http.DefaultClient.Do(req); err == nil {
					_ = resp.Body.Close()
				}
			}
		})
	}
	all.Wait()
}

func (c *chaos) slow(t *testing.T) {
	if c.sim != nil {
		c.sim.Inject(ollamasim.Fault{Kind: ollamasim.SlowLoad, Delay: 40 * time.Second}) // at ten times the speed
		time.Sleep(10 * time.Second)
		c.sim.Clear()
		return
	}
	for range 4 { // nothing moves for most of the time, loads among it
		if err := c.server.Pause(); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		if err := c.server.Resume(); err != nil {
			t.Error(err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// restart ends tenure and starts another.
func (c *chaos) restart(t *testing.T, sig syscall.Signal) {
	c.abort.Store(sig == syscall.SIGKILL)
	c.ended.Store(time.Now().UnixNano())
	end := func() error { return c.rig.tenure.Stop(15 * time.Second) }
	if sig == syscall.SIGKILL {
		end = c.rig.tenure.Kill
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	time.Sleep(500 * time.Millisecond)
	c.rig.start(c.t, c.settings...)
}

// forwarder is the way to Ollama, which can be cut.
type forwarder struct {
	t      *testing.T
	addr   string
	to     string
	wg     sync.WaitGroup
	mu     sync.Mutex
	listen net.Listener
	conns  map[net.Conn]struct{}
}

func newForwarder(t *testing.T, to string) *forwarder {
	f := &forwarder{t: t, addr: "127.0.0.1:0", to: to, conns: map[net.Conn]struct{}{}}
	f.up()
	t.Cleanup(func() {
		f.down()
		f.wg.Wait()
	})
	return f
}

// up listens, always at the same address.
func (f *forwarder) up() {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", f.addr)
	if err != nil {
		f.t.Error(err)
		return
	}
	f.mu.Lock()
	f.listen, f.addr = l, l.Addr().String()
	f.mu.Unlock()
	f.wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.forward(from) })
		}
	})
}

// down refuses connections, and cuts those there are.
func (f *forwarder) down() {
	f.mu.Lock()
	_ = f.listen.Close()
	f.mu.Unlock()
	f.cut()
}

// cut breaks every connection.
func (f *forwarder) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for conn := range f.conns {
		_ = conn.Close()
	}
}

func (f *forwarder) forward(from net.Conn) {
	to, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", f.to)
	if err != nil {
		_ = from.Close()
		return
	}
	f.mu.Lock()
	f.conns[from], f.conns[to] = struct{}{}, struct{}{}
	f.mu.Unlock()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
		both.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_ = from.Close()
			_ = to.Close()
		})
	}
	both.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, from)
	delete(f.conns, to)
}
