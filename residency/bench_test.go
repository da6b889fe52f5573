package residency

import (
	"fmt"
	"testing"
	"time"
)

// crowd is a book with four models and n requests queued for each class and
// absent or full model, in a state where nothing can be granted but by what
// the caller does.
func crowd(tb testing.TB, p Policy, n int) (b *Book, models []Model, now time.Time) {
	tb.Helper()
	phi, deepseek, mistral, llama := catalog()
	now = time.Unix(0, 0)
	b = NewBook(Config{Budget: 20 * GiB, MaxModels: 3, QueueLimit: 1 << 20, MaxWait: time.Hour}, p, now)
	models = []Model{phi, deepseek, mistral, llama}
	for _, m := range models[:3] {
		if fx := b.Want(now, m); fx.HasLoad {
			b.Loaded(now, m.Name, 0, nil)
		}
	}
	for i := range n {
		m := models[i%len(models)]
		c := Class(i / len(models) % 2)
		if _, _, err := b.Ask(now, m, c); err != nil {
			tb.Fatal(err)
		}
		now = now.Add(time.Millisecond)
	}
	return b, models, now
}

// BenchmarkDecision is the cost of one event, its policy decision included,
// with n requests queued: a request comes, and one leaves the queue.
func BenchmarkDecision(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("queued=%d", n), func(b *testing.B) {
			book, models, now := crowd(b, Latency(), n)
			b.ReportAllocs()
			k := 0
			for b.Loop() {
				k++
				now = now.Add(time.Microsecond)
				t, _, err := book.Ask(now, models[k%len(models)], Class(k/4%2))
				if err != nil {
					b.Fatal(err)
				}
				if _, ok := book.Cancel(now, t); !ok {
					b.Fatal("granted out of turn")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(2*b.N), "ns/event")
		})
	}
}

// BenchmarkServe is a request served by a busy resident: asked, granted when
// the one before is released, released.
func BenchmarkServe(b *testing.B) {
	book, models, now := crowd(b, Latency(), 1_000)
	b.ReportAllocs()
	_, fx, err := book.Ask(now, models[1], Interactive)
	if err != nil || len(fx.Grants) != 0 {
		b.Fatal(fx, err)
	}
	// The lease now out is the first one of the crowd; find it by releasing.
	running := runningTickets(book)
	for b.Loop() {
		now = now.Add(time.Microsecond)
		if _, _, err := book.Ask(now, models[1], Interactive); err != nil {
			b.Fatal(err)
		}
		for i, t := range running {
			if fx := book.Release(now, t); len(fx.Grants) == 1 {
				running[i] = fx.Grants[0].Ticket
				break
			}
		}
	}
}

func runningTickets(b *Book) (ts []Ticket) {
	for s := range b.slots {
		if b.slots[s].state == running {
			ts = append(ts, b.ticket(int32(s)))
		}
	}
	return ts
}

// A decision must cost the same however many wait, and allocate nothing.
func TestDecisionsDoNotAllocate(t *testing.T) {
	for _, n := range []int{100, 10_000} {
		book, models, now := crowd(t, Latency(), n)
		k := 0
		allocs := testing.AllocsPerRun(2000, func() {
			k++
			now = now.Add(time.Microsecond)
			tk, _, _ := book.Ask(now, models[k%len(models)], Interactive)
			book.Cancel(now, tk)
			book.Tick(now)
		})
		if allocs != 0 {
			t.Errorf("%d queued: %.1f allocations per event", n, allocs)
		}
	}
}

// A whole swap, from close to loaded, allocates nothing either.
func TestSwapsDoNotAllocate(t *testing.T) {
	_, deepseek, _, llama := catalog()
	now := time.Unix(0, 0)
	b := NewBook(Config{Budget: 10 * GiB}, Latency(), now)
	pair := [2]Model{deepseek, llama}
	k := 0
	swap := func() {
		m, other := pair[k%2], pair[(k+1)%2]
		k++
		now = now.Add(time.Minute)
		t, fx, err := b.Ask(now, m, Interactive)
		if err != nil {
			panic(err)
		}
		if len(fx.Unloads) == 1 {
			fx = b.Unloaded(now, other.Name, nil)
		}
		if fx.HasLoad {
			b.Loaded(now, m.Name, 0, nil)
		}
		b.Release(now, t)
	}
	swap()
	swap()
	if allocs := testing.AllocsPerRun(1000, swap); allocs != 0 {
		t.Errorf("%.2f allocations per swap", allocs)
	}
	if b.count.Unloads < 1000 {
		t.Errorf("only %d swaps", b.count.Unloads)
	}
}

// BenchmarkAcquire is a lease on a resident model, taken and given back.
func BenchmarkAcquire(b *testing.B) {
	phi, _, _, _ := catalog()
	phi.LoadTime = 0
	s := New(Config{Budget: 20 * GiB}, Latency(), newSleeper(b, 20*GiB))
	defer s.Close()
	b.ReportAllocs()
	for b.Loop() {
		lease, err := s.Acquire(b.Context(), phi, Interactive)
		if err != nil {
			b.Fatal(err)
		}
		lease.Release()
	}
}
