package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tenure/proxy/ollama/ollamasim"
	"tenure/residency"
)

// heap is what is in use once garbage is gone.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what pools held back
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// endless is a reader of n bytes, none of which exists.
type endless struct{ n int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.n <= 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), e.n)
	e.n -= n
	for i := range p[:n] {
		p[i] = 'x'
	}
	return int(n), nil
}

// Each limit on a request's shape is told to the client by name, in OpenAI's
// form, and a hundred huge requests leave nothing behind.
func TestLimitsOnRequests(t *testing.T) {
	const limit = 1 << 20
	list := func(element string, n int) string {
		return "[" + strings.TrimSuffix(strings.Repeat(element+",", n), ",") + "]"
	}
	numbered := func(format string, n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(strings.ReplaceAll(format, "#", strconv.Itoa(i)))
			b.WriteByte(',')
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	const message = `{"role":"user","content":"x"}`
	const image = `{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgoAAAAN"}}`
	with := func(more string) string {
		return `{"model":"mistral","messages":[` + message + `],` + more + `}`
	}
	messages := func(m string) string { return `{"model":"mistral","messages":` + m + `}` }
	inBubble(t, rigConfig{proxy: Config{BodyBytes: limit}}, func(t *testing.T, r *rig) {
		for _, c := range []struct {
			name, body  string
			header      []string
			status      int
			code, param string
		}{
			{"body", chatBody("mistral", strings.Repeat("x", limit), ""), nil, 413, "request_too_large", ""},
			{"headers", messages(list(message, 1)), []string{"X-Filler", strings.Repeat("x", headerBytes)}, 431, "headers_too_large", ""},
			{"compressed", "\x1f\x8b" + strings.Repeat("\x00", 100<<10), []string{"Content-Encoding", "gzip"}, 400, "unsupported_encoding", ""},
			{"messages", messages(list(message, 2049)), nil, 400, "invalid_value", "messages[2048]"},
			{"parts", messages(`[{"role":"user","content":` + list(`""`, 100_000) + `}]`), nil, 400, "invalid_value", "messages[0].content[8192]"},
			{"tool calls", messages(`[{"role":"assistant","tool_calls":` + list(`{"function":{"name":"f"}}`, 10_000) + `}]`), nil, 400, "invalid_value", "messages[0].tool_calls[8192]"},
			{"images", messages(`[{"role":"user","content":` + list(image, 33) + `}]`), nil, 400, "invalid_value", "messages[0].content[32].image_url"},
			{"tools", with(`"tools":[` + numbered(`{"type":"function","function":{"name":"f#"}}`, 129) + `]`), nil, 400, "invalid_value", "tools[128]"},
			{"metadata", with(`"metadata":{` + numbered(`"k#":"v"`, 10_000) + `}`), nil, 400, "invalid_value", "metadata"},
			{"keys", with(`"x":{` + numbered(`"k#":0`, 50_000) + `}`), nil, 400, "invalid_json", ""},
			{"nesting", with(`"x":` + strings.Repeat("[", 500_000) + strings.Repeat("]", 500_000)), nil, 400, "invalid_json", ""},
		} {
			send := func() reply { return r.do(http.MethodPost, "http://api/v1/chat/completions", c.body, c.header...) }
			a := send()
			if e := a.failure(t); e.Status != c.status || e.Code != c.code || e.Param != c.param || e.Type != "invalid_request_error" {
				t.Errorf("%s: got %+v, want %d %s %s", c.name, e, c.status, c.code, c.param)
			}
			before := heap()
			for range 30 {
				send()
			}
			if after := heap(); after > before+2<<20 {
				t.Errorf("%s: the heap grew by %d KiB over 30 requests", c.name, (after-before)>>10)
			}
		}
		if n := r.server.bodies.held.Load(); n != 0 {
			t.Errorf("%d bytes of bodies are held by nobody", n)
		}
	})
}

// A body that is too large is not read: neither one that says so, nor one that
// does not.
func TestHugeBodiesAreNotHeld(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		h := r.server.API()
		before := heap()
		var read int64
		for i := range 100 {
			body := &endless{n: 1 << 30}
			req := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", body)
			req.ContentLength = -1
			if i%2 == 0 {
				req.ContentLength = 1 << 30
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			if w.Code != http.StatusRequestEntityTooLarge || w.Header().Get("Connection") != "close" {
				t.Fatalf("%d, connection %q", w.Code, w.Header().Get("Connection"))
			}
			read += 1<<30 - body.n
		}
		if read > 50*(1<<20+512<<10) {
			t.Errorf("%d MiB were read of bodies over 1 MiB", read>>20)
		}
		if after := heap(); after > before+4<<20 {
			t.Errorf("the heap grew by %d KiB", (after-before)>>10)
		}
	})
}

// Bodies count while their requests wait. Who comes when too many bytes are
// held is told to come later; when they have been answered, all is free again.
func TestQueueIsBoundInBytes(t *testing.T) {
	const size, most = 40 << 10, 10
	cfg := rigConfig{proxy: Config{HeldBytes: most * (size + 100)}, residency: residency.Config{QueueLimit: 1000}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		statuses := make(chan int)
		const clients = 3 * most
		for i := range clients {
			go func() {
				a := r.chat("mistral", strconv.Itoa(i), `,"user":"`+strings.Repeat("x", size)+`"`, "Cache-Control", "no-store")
				if a.status == http.StatusTooManyRequests {
					e := a.failure(t)
					if e.Code != "queue_full" || e.Type != "rate_limit_error" || a.header.Get("Retry-After") == "" {
						t.Errorf("got %+v, Retry-After %q", e, a.header.Get("Retry-After"))
					}
				}
				statuses <- a.status
			}()
		}
		count := map[int]int{}
		for range clients {
			count[<-statuses]++
		}
		if count[http.StatusTooManyRequests] != clients-most || len(count) != 2 {
			t.Errorf("statuses %v, want %d of %d refused", count, clients-most, clients)
		}
		synctest.Wait()
		if n := r.server.bodies.held.Load(); n != 0 {
			t.Errorf("%d bytes are held at rest", n)
		}
		if a := r.chat("mistral", "one more", ""); a.status != http.StatusOK {
			t.Errorf("afterwards: %d %s", a.status, a.body)
		}
		e := r.do(http.MethodPost, "http://api/api/chat", `{"model":"mistral","messages":[{"role":"user","content":"`+strings.Repeat("x", 11*size)+`"}]}`)
		if e.status != http.StatusTooManyRequests || !strings.HasPrefix(e.body, `{"error":"`) {
			t.Errorf("Ollama's side: %d %s", e.status, e.body)
		}
	})
}

// behindLimits serves the rig's API behind the limits of a real server, to clients
// from any address.
func behindLimits(t *testing.T, r *rig, cfg Config) (dial func(from string) net.Conn) {
	t.Helper()
	r.server.cfg.Connections, r.server.cfg.ConnectionsPerAddress = cfg.Connections, cfg.ConnectionsPerAddress
	l := &addressedListener{newPipeListener()}
	h := HTTPServer(r.server.API(), r.server.log)
	served := make(chan struct{})
	go func() {
		_ = h.Serve(r.server.Limit(l))
		close(served)
	}()
	t.Cleanup(func() {
		_ = h.Close()
		<-served
	})
	return func(from string) net.Conn {
		client, server := net.Pipe()
		at, err := net.ResolveTCPAddr("tcp", from)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case l.conns <- addressed{server, at}:
		case <-l.closed:
			t.Fatal("closed")
		}
		t.Cleanup(func() { _ = client.Close() })
		return client
	}
}

type addressedListener struct{ *pipeListener }

// addressed is a pipe that comes from somewhere.
type addressed struct {
	net.Conn
	from net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.from }

// exchangeOn sends raw bytes and reads the answer to them.
func exchangeOn(t *testing.T, c net.Conn, request string) reply {
	t.Helper()
	go func() { _, _ = io.WriteString(c, request) }() // who is turned away may not be read to the end
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Close { // ReadResponse takes the header away
		resp.Header.Set("Connection", "close")
	}
	return reply{resp.StatusCode, resp.Header, string(body)}
}

const getModels = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"

func TestConnectionLimits(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		dial := behindLimits(t, r, Config{Connections: 6, ConnectionsPerAddress: 2})
		welcome := func(from string) net.Conn {
			t.Helper()
			c := dial(from)
			if a := exchangeOn(t, c, getModels); a.status != http.StatusOK {
				t.Fatalf("%s: %d %s", from, a.status, a.body)
			}
			return c
		}
		refused := func(from string, status int) {
			t.Helper()
			a := exchangeOn(t, dial(from), getModels)
			if e := a.failure(t); e.Status != status || e.Code != "too_many_connections" || a.header.Get("Retry-After") != "2" || a.header.Get("Connection") != "close" {
				t.Errorf("%s: got %+v, headers %v, want %d", from, e, a.header, status)
			}
		}
		first := welcome("10.0.0.1:1")
		welcome("10.0.0.1:2")
		refused("10.0.0.1:3", http.StatusTooManyRequests)
		refused("[::ffff:10.0.0.1]:3", http.StatusTooManyRequests) // the same in other words
		welcome("[2001:db8::1]:1")
		welcome("[2001:db8::2]:1") // of one network, as if one host
		refused("[2001:db8::3]:1", http.StatusTooManyRequests)
		welcome("127.0.0.1:1")
		welcome("127.0.0.1:2")
		refused("127.0.0.1:3", http.StatusServiceUnavailable) // the sixth was the last
		_ = first.Close()
		synctest.Wait()
		welcome("127.0.0.1:4") // not counted by its address

		a := exchangeOn(t, dial("10.9.9.9:1"), "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
		if a.status != http.StatusServiceUnavailable || !strings.HasPrefix(a.body, `{"error":"`) {
			t.Errorf("Ollama's side: %d %s", a.status, a.body)
		}
		text := r.do("GET", "http://admin/metrics", "", "Host", "localhost").body
		if n := counters(t, text, "tenure_connections_refused_total"); n[`{limit="total"}`] != 2 || n[`{limit="address"}`] != 3 {
			t.Errorf("counted %v, want 2 and 3", n)
		}
	})
}

// Ten thousand connections too many leave nothing behind, whether they ask or
// not.
func TestConnectionFlood(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		dial := behindLimits(t, r, Config{Connections: 1})
		c := dial("10.0.0.1:1")
		exchangeOn(t, c, getModels)
		flood := func(n int) {
			for range n {
				_ = dial("10.0.0.2:1") // and says nothing
			}
			time.Sleep(2 * farewellTime)
			synctest.Wait()
		}
		flood(100)
		goroutines, before := runtime.NumGoroutine(), heap()
		flood(10_000)
		if n := runtime.NumGoroutine(); n > goroutines+8 { // the server's own come and go
			t.Errorf("%d goroutines, %d before", n, goroutines)
		}
		if after := heap(); after > before+16<<20 { // the test's own ends of the pipes
			t.Errorf("the heap grew by %d KiB", (after-before)>>10)
		}
		if a := exchangeOn(t, c, getModels); a.status != http.StatusOK {
			t.Errorf("the one that is connected: %d", a.status)
		}
	})
}

// Who sends slowly is cut off; who is answered slowly is not.
func TestSlowSenders(t *testing.T) {
	inBubble(t, rigConfig{}, func(t *testing.T, r *rig) {
		dial := behindLimits(t, r, Config{})
		trickle := func(c net.Conn, text string, every time.Duration) {
			go func() {
				for i := range len(text) {
					if _, err := c.Write([]byte{text[i]}); err != nil {
						return
					}
					time.Sleep(every)
				}
			}()
		}
		began := time.Now()
		c := dial("10.0.0.1:1")
		trickle(c, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Filler: "+strings.Repeat("x", 1000), time.Second)
		if _, err := io.ReadAll(c); err != nil || time.Since(began) > headerTime+time.Second {
			t.Errorf("headers: %v after %v", err, time.Since(began))
		}

		began = time.Now()
		c = dial("10.0.0.1:1")
		go func() {
			_, _ = io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
			trickle(c, strings.Repeat(" ", 1000), time.Second)
		}()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		a := reply{resp.StatusCode, resp.Header, string(body)}
		_ = resp.Body.Close()
		if e := a.failure(t); e.Status != http.StatusRequestTimeout || e.Code != "request_timeout" || !resp.Close {
			t.Errorf("body: got %+v, %v", e, a.header)
		}
		if took := time.Since(began); took < bodyTime || took > bodyTime+time.Second {
			t.Errorf("body: cut after %v, want %v", took, bodyTime)
		}
		if n := r.server.bodies.held.Load(); n != 0 {
			t.Errorf("%d bytes are held by nobody", n)
		}

		// An answer may take longer than any of these.
		began = time.Now()
		r.sim.Inject(ollamasim.Fault{Kind: ollamasim.SlowLoad, Model: "llama3", Delay: bodyTime + time.Minute})
		request := chatBody("llama3", "hello", `,"stream":true`)
		a = exchangeOn(t, dial("10.0.0.1:1"), "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "+
			strconv.Itoa(len(request))+"\r\n\r\n"+request)
		if !strings.HasSuffix(a.body, "data: [DONE]\n\n") || time.Since(began) < bodyTime+time.Minute {
			t.Errorf("a slow answer ended after %v: %.200s", time.Since(began), a.body)
		}
	})
}
