package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, cfg Config) *Cache {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// text reads a recording to its end.
func text(r *Reader) (string, error) {
	var b strings.Builder
	for chunk, err := range r.Chunks(context.Background()) {
		if err != nil {
			return b.String(), err
		}
		b.Write(chunk)
	}
	return b.String(), nil
}

// speak is work that says words, one every pause, and is kept for ttl.
func speak(pause, ttl time.Duration, words ...string) Fill {
	return func(ctx context.Context, rec *Recording) (time.Duration, error) {
		for _, w := range words {
			select {
			case <-time.After(pause):
				rec.Append([]byte(w))
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		}
		return ttl, nil
	}
}

func want(t *testing.T, r *Reader, o Outcome, wantOutcome Outcome, wantText string) {
	t.Helper()
	got, err := text(r)
	r.Close()
	if err != nil || got != wantText || o != wantOutcome {
		t.Errorf("got %v %q (%v), want %v %q", o, got, err, wantOutcome, wantText)
	}
}

func TestMissThenHitUntilItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Bytes: 1 << 20})
		q := Request{Key: KeyOf([]byte("q"))}
		r, o, _ := c.Do(q, speak(time.Second, time.Minute, "a", "b"))
		want(t, r, o, Miss, "ab")
		synctest.Wait()
		time.Sleep(30 * time.Second)
		r, o, age := c.Do(q, speak(time.Second, time.Minute, "again"))
		want(t, r, o, Hit, "ab")
		if age != 30*time.Second {
			t.Errorf("age %v, want 30s", age)
		}
		r, o, _ = c.Do(Request{Key: q.Key, MaxAge: 10 * time.Second}, speak(time.Second, 0, "young"))
		want(t, r, o, Miss, "young")
		time.Sleep(time.Minute)
		r, o, _ = c.Do(q, speak(time.Second, time.Minute, "anew"))
		want(t, r, o, Miss, "anew")
	})
}

// A joiner that comes late reads from the first chunk.
func TestSharedFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{})
		q := Request{Key: KeyOf([]byte("q"))}
		first, o1, _ := c.Do(q, speak(time.Second, 0, "a", "b", "c"))
		time.Sleep(1500 * time.Millisecond)
		second, o2, _ := c.Do(q, func(context.Context, *Recording) (time.Duration, error) {
			t.Error("the work was done twice")
			return 0, nil
		})
		want(t, second, o2, Shared, "abc")
		want(t, first, o1, Miss, "abc")
	})
}

// Urgent work does not wait for what may wait long; the other way round it does.
func TestRankOfAFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Bytes: 1 << 20})
		k := KeyOf([]byte("q"))
		later, _, _ := c.Do(Request{Key: k, Rank: 1}, speak(time.Hour, time.Hour, "same"))
		soon, o, _ := c.Do(Request{Key: k}, speak(time.Second, time.Hour, "same"))
		joined, o2, _ := c.Do(Request{Key: k, Rank: 1}, nil)
		want(t, soon, o, Miss, "same")
		want(t, joined, o2, Shared, "same")
		later.Close()
	})
}

func TestLeaderLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{})
		q := Request{Key: KeyOf([]byte("q"))}
		leader, _, _ := c.Do(q, speak(time.Second, 0, "a", "b", "c"))
		follower, o, _ := c.Do(q, nil)
		time.Sleep(1500 * time.Millisecond)
		leader.Close()
		want(t, follower, o, Shared, "abc")
	})
}

func TestLastReaderLeavingCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{})
		q := Request{Key: KeyOf([]byte("q"))}
		var cause error
		r1, _, _ := c.Do(q, func(ctx context.Context, _ *Recording) (time.Duration, error) {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return 0, cause
		})
		r2, _, _ := c.Do(q, nil)
		r1.Close()
		r1.Close() // leaving twice is leaving once
		synctest.Wait()
		if cause != nil {
			t.Fatalf("cancelled (%v) while somebody reads", cause)
		}
		r2.Close()
		synctest.Wait()
		if !errors.Is(cause, errAbandoned) {
			t.Errorf("cause %v, want %v", cause, errAbandoned)
		}
		r, o, _ := c.Do(q, speak(0, 0, "new"))
		want(t, r, o, Miss, "new")
	})
}

func TestFailureIsSeenAndNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Bytes: 1 << 20})
		q := Request{Key: KeyOf([]byte("q"))}
		broken := errors.New("broken")
		r, _, _ := c.Do(q, func(_ context.Context, rec *Recording) (time.Duration, error) {
			rec.Append([]byte("half"))
			return time.Hour, broken
		})
		got, err := text(r)
		if got != "half" || !errors.Is(err, broken) {
			t.Errorf("got %q, %v; want half and the error", got, err)
		}
		r.Close()
		r, o, _ := c.Do(q, speak(0, 0, "whole"))
		want(t, r, o, Miss, "whole")
	})
}

func TestPanicBecomesError(t *testing.T) {
	c := open(t, Config{})
	r, _, _ := c.Do(Request{}, func(context.Context, *Recording) (time.Duration, error) { panic("oh") })
	defer r.Close()
	_, err := text(r)
	if p, ok := errors.AsType[*PanicError](err); !ok || len(p.Stack) == 0 {
		t.Errorf("got %v, want a *PanicError with its stack", err)
	}
}

func TestPrivateAndRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Bytes: 1 << 20})
		for range 2 {
			r, o, _ := c.Do(Request{}, speak(0, time.Hour, "mine"))
			want(t, r, o, Bypass, "mine")
		}
		q := Request{Key: KeyOf([]byte("q"))}
		r, o, _ := c.Do(q, speak(0, time.Hour, "old"))
		want(t, r, o, Miss, "old")
		r, o, _ = c.Do(Request{Key: q.Key, Refresh: true}, speak(0, time.Hour, "new"))
		want(t, r, o, Miss, "new")
		synctest.Wait()
		r, o, _ = c.Do(q, nil)
		want(t, r, o, Hit, "new")
		// What was begun before a refresh and ends after it is not kept.
		c.Drop(Owner{})
		slow, _, _ := c.Do(q, speak(time.Minute, time.Hour, "slow"))
		r, o, _ = c.Do(Request{Key: q.Key, Refresh: true}, speak(time.Second, time.Hour, "fresh"))
		want(t, r, o, Miss, "fresh")
		want(t, slow, Miss, Miss, "slow")
		synctest.Wait()
		r, o, _ = c.Do(q, nil)
		want(t, r, o, Hit, "fresh")
		c.Drop(Owner{})
		r, o, _ = c.Do(q, speak(0, 0, "cleared"))
		want(t, r, o, Miss, "cleared")
	})
}

// Beyond its cap a flight takes no joiners, is not kept, and holds no more than
// its slowest reader has yet to read.
func TestFlightOverItsCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Bytes: 1 << 20, FlightBytes: 10})
		q := Request{Key: KeyOf([]byte("q"))}
		const n = 100
		long := func(ctx context.Context, rec *Recording) (time.Duration, error) {
			for range n {
				time.Sleep(time.Second)
				rec.Append([]byte("x"))
			}
			return time.Hour, nil
		}
		r, _, _ := c.Do(q, long)
		read := 0
		for _, err := range r.Chunks(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if read++; read == 50 {
				other, o, _ := c.Do(q, speak(0, 0, "other"))
				want(t, other, o, Miss, "other")
				if held := len(r.rec.chunks); held > 1 {
					t.Errorf("holds %d chunks behind a reader that has read them", held)
				}
			}
		}
		if read != n {
			t.Errorf("read %d chunks, want %d", read, n)
		}
		r.Close()
		synctest.Wait()
		again, o, _ := c.Do(q, speak(0, 0, "again"))
		want(t, again, o, Miss, "again")
	})
}

// What a reader may fall behind is bounded: it is given up, and nobody else is.
func TestReaderLags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10
		c := open(t, Config{Bytes: 1 << 20, FlightBytes: limit})
		q := Request{Key: KeyOf([]byte("q"))}
		const n = 1000
		slow, _, _ := c.Do(q, func(_ context.Context, rec *Recording) (time.Duration, error) {
			for range n {
				time.Sleep(time.Second)
				rec.Append([]byte("x"))
			}
			return time.Hour, nil
		})
		fast, o, _ := c.Do(q, nil)
		if _, err := slow.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		read, most := 0, 0
		for _, err := range fast.Chunks(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			read++
			most = max(most, fast.rec.held)
		}
		if read != n || o != Shared || most > (lagFactor+1)*limit {
			t.Errorf("%v, read %d of %d chunks while %d bytes were held", o, read, n, most)
		}
		if _, err := slow.Next(t.Context()); !errors.Is(err, ErrLagged) {
			t.Errorf("the slow one got %v", err)
		}
		slow.Close()
		fast.Close()
	})
}

func TestCloseCancelsAndRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Bytes: 1 << 20})
		r, _, _ := c.Do(Request{}, speak(time.Hour, 0, "never"))
		c.Close()
		if _, err := text(r); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want %v", err, ErrClosed)
		}
		r.Close()
		r, _, _ = c.Do(Request{Key: KeyOf([]byte("q"))}, nil)
		if _, err := text(r); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: got %v, want %v", err, ErrClosed)
		}
		r.Close()
	})
}

func TestReaderStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{})
		r, _, _ := c.Do(Request{}, speak(time.Hour, 0, "late"))
		defer r.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
	})
}

func TestOpeningComesBeforeTheFirstChunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{})
		r, _, _ := c.Do(Request{}, func(_ context.Context, rec *Recording) (time.Duration, error) {
			rec.Open("warm")
			time.Sleep(time.Second)
			rec.Append([]byte("a"))
			return 0, nil
		})
		defer r.Close()
		synctest.Wait() // the work sleeps
		if r.Ready() || r.Opening() != "warm" {
			t.Errorf("ready %v, opening %v; want only the opening", r.Ready(), r.Opening())
		}
	})
}

func TestKeysDifferByFieldBoundary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fields := rapid.SliceOfN(rapid.SliceOf(rapid.Byte()), 1, 5).Draw(t, "fields")
		others := rapid.SliceOfN(rapid.SliceOf(rapid.Byte()), 1, 5).Draw(t, "others")
		same := slices.EqualFunc(fields, others, slices.Equal)
		if (KeyOf(fields...) == KeyOf(others...)) != same {
			t.Fatalf("fields equal: %v, keys equal: %v", same, !same)
		}
	})
}

// Many callers, few questions: each gets the whole answer to its own question,
// and no question is worked on twice at once.
func TestManyCallers(t *testing.T) {
	c := open(t, Config{Bytes: 1 << 20})
	var mu sync.Mutex
	busy := map[int]int{}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			question := i % 7
			r, _, _ := c.Do(Request{Key: KeyOf(fmt.Append(nil, question))}, func(_ context.Context, rec *Recording) (time.Duration, error) {
				mu.Lock()
				busy[question]++
				if busy[question] > 1 {
					t.Errorf("question %d is worked on twice at once", question)
				}
				mu.Unlock()
				for range 20 {
					rec.Append(fmt.Appendf(nil, "%d,", question))
				}
				mu.Lock()
				busy[question]--
				mu.Unlock()
				return time.Hour, nil
			})
			defer r.Close()
			if got, err := text(r); err != nil || got != strings.Repeat(fmt.Sprintf("%d,", question), 20) {
				t.Errorf("question %d: got %q, %v", question, got, err)
			}
		})
	}
	wg.Wait()
}

// The store drops under a burst and refuses what is too big; what it gives
// back is always what was put under that key.
func TestStoreGivesBackOnlyWhatWasPut(t *testing.T) {
	s, err := newStore(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	big := &entry{key: KeyOf([]byte("big")), chunks: [][]byte{make([]byte, 1<<20/largestShare+1)}}
	s.put(big, time.Hour)
	if _, ok := s.get(big.key); ok {
		t.Error("an entry larger than its share was kept")
	}
	// Two keys that ristretto cannot tell apart are told apart here.
	one, other := KeyOf([]byte("one")), KeyOf([]byte("other"))
	s.ristretto.SetWithTTL(one[:], &entry{key: other}, 1, time.Hour)
	s.ristretto.Wait()
	if _, ok := s.get(one); ok {
		t.Error("an entry was given for another key")
	}
	kept := 0
	for i := range 500 {
		e := &entry{key: KeyOf(fmt.Append(nil, i)), chunks: [][]byte{fmt.Append(nil, i)}}
		s.put(e, time.Hour)
		if got, ok := s.get(e.key); ok {
			kept++
			if got != e {
				t.Fatalf("key %d gave another entry", i)
			}
		}
	}
	if kept < 490 {
		t.Errorf("%d of 500 entries visible after put, want nearly all", kept)
	}
}

// What is dropped is gone, also what was being made when it was dropped, and
// nothing else is.
func TestDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Bytes: 1 << 20})
		owners := []Owner{{"acme", "parse"}, {"acme", "match"}, {"globex", "parse"}}
		q := func(o Owner) Request { return Request{Key: KeyOf([]byte(o.Tenant), []byte(o.Task)), Owner: o} }
		fill := func() {
			for _, o := range owners {
				r, outcome, _ := c.Do(q(o), speak(time.Second, time.Hour, "answer"))
				if _, err := text(r); err != nil || outcome == Shared {
					t.Fatalf("%v %v", outcome, err)
				}
				r.Close()
			}
			synctest.Wait()
		}
		for _, step := range []struct {
			drop Owner
			gone []Owner
		}{
			{Owner{Tenant: "acme"}, owners[:2]},
			{Owner{Task: "parse"}, []Owner{owners[0], owners[2]}},
			{Owner{"acme", "match"}, owners[1:2]},
			{Owner{Tenant: "nobody"}, nil},
			{Owner{}, owners},
		} {
			fill()
			if n := c.Drop(step.drop); n != len(step.gone) {
				t.Errorf("%+v: dropped %d, want %d", step.drop, n, len(step.gone))
			}
			for _, o := range owners {
				if _, kept := c.store.get(q(o).Key); kept == slices.Contains(step.gone, o) {
					t.Errorf("%+v: kept %v of %+v", step.drop, kept, o)
				}
			}
		}

		c.Drop(Owner{})
		first, _, _ := c.Do(q(owners[0]), speak(time.Second, time.Hour, "made before"))
		c.Drop(Owner{Tenant: "acme"})
		r, outcome, _ := c.Do(q(owners[0]), speak(time.Second, time.Hour, "made after"))
		want(t, first, Miss, Miss, "made before")
		want(t, r, outcome, Miss, "made after")
		r, outcome, _ = c.Do(q(owners[0]), nil)
		want(t, r, outcome, Hit, "made after")
	})
}

// What is known to be kept is what ristretto keeps, through eviction, expiry
// and replacement.
func TestLiveEntriesAreKnown(t *testing.T) {
	s, err := newStore(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for i := range 2000 {
		s.put(&entry{key: KeyOf(fmt.Append(nil, i%700)), chunks: [][]byte{make([]byte, 400)}}, time.Hour)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.live); n == 0 || n > 64<<10/entryOverhead {
		t.Errorf("%d entries are taken to be kept, in 64 KiB", n)
	}
	for e := range s.live {
		if got, ok := s.get(e.key); !ok || got != e {
			t.Fatal("an entry is taken to be kept that is not")
		}
	}
}

func BenchmarkHit(b *testing.B) {
	c, err := New(Config{Bytes: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	q := Request{Key: KeyOf([]byte("q"))}
	r, _, _ := c.Do(q, speak(0, time.Hour, "answer"))
	if _, err := text(r); err != nil {
		b.Fatal(err)
	}
	r.Close()
	b.ReportAllocs()
	for b.Loop() {
		r, _, _ := c.Do(q, nil)
		if _, err := r.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

// A store that is full of answers that are read takes in new ones: they are not
// frozen out by the counts of those that came first.
func TestNewcomersEnterAFullStore(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector sync.Pool drops at random, and ristretto counts what is asked for in one")
	}
	const size = 256 << 10
	s, err := newStore(size)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	make1K := func(name string, i int) *entry {
		return &entry{key: KeyOf([]byte(name), fmt.Append(nil, i)), chunks: [][]byte{make([]byte, 1<<10)}}
	}
	var old []*entry
	for i := range size / (1<<10 + entryOverhead) {
		e := make1K("old", i)
		s.put(e, time.Hour)
		old = append(old, e)
	}
	for range 5 {
		for _, e := range old {
			s.get(e.key)
		}
	}
	const newcomers = 100
	visible := 0
	for i := range newcomers {
		e := make1K("new", i)
		for range 3 { // asked for, made, and asked for again
			if _, ok := s.get(e.key); ok {
				visible++
				break
			}
			s.put(e, time.Hour)
		}
	}
	if visible < newcomers/2 {
		t.Errorf("%d of %d newcomers were kept after they were asked for three times", visible, newcomers)
	}
}

// What is kept costs what it holds: the store's bytes are not exceeded by much,
// whatever the entries' sizes.
func TestCostIsWhatIsHeld(t *testing.T) {
	const size = 1 << 20
	for _, chunk := range []int{1, 100, 1000, size/largestShare - entryOverhead - 100} {
		s, err := newStore(size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 * size / (chunk + entryOverhead) {
			s.put(&entry{key: KeyOf(fmt.Append(nil, i)), chunks: [][]byte{make([]byte, chunk)}}, time.Hour)
		}
		held := 0
		s.mu.Lock()
		for e := range s.live {
			held += cap(e.chunks[0]) + entryOverhead
		}
		s.mu.Unlock()
		if held > size || held < size/2 {
			t.Errorf("chunks of %d: %d bytes are held of %d", chunk, held, size)
		}
		s.close()
	}
}

// A slow reader delays nobody: another one of the same flight, and the work
// itself, go on without it.
func TestSlowFollowerDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{Bytes: 1 << 20})
		q := Request{Key: KeyOf([]byte("q"))}
		began := time.Now()
		first, o1, _ := c.Do(q, speak(time.Second, time.Hour, "a", "b", "c"))
		slow, o2, _ := c.Do(q, nil)
		if chunk, err := slow.Next(t.Context()); err != nil || string(chunk) != "a" {
			t.Fatalf("%q, %v", chunk, err)
		}
		want(t, first, o1, Miss, "abc")
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("the fast reader took %v, want 3s", took)
		}
		time.Sleep(time.Minute)
		third, o3, _ := c.Do(q, nil)
		want(t, third, o3, Hit, "abc")
		want(t, slow, o2, Shared, "bc")
	})
}

// Close beside many callers neither panics nor hangs: ristretto does not bear a
// Set after its Close.
func TestCloseUnderLoad(t *testing.T) {
	for range 20 {
		c, err := New(Config{Bytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for n := range 100 {
					r, _, _ := c.Do(Request{Key: KeyOf(fmt.Append(nil, i, n)), Refresh: n%2 == 0}, func(_ context.Context, rec *Recording) (time.Duration, error) {
						rec.Append([]byte("answer"))
						return time.Hour, nil
					})
					_, _ = text(r) // an answer, or ErrClosed
					r.Close()
					c.Drop(Owner{Tenant: "nobody"})
				}
			})
		}
		c.Close()
		wg.Wait()
	}
}

// TestAllocationsOfAHit: what a hit takes does not depend on the answer.
func TestAllocationsOfAHit(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector sync.Pool drops at random, and ristretto lives on one")
	}
	c := open(t, Config{Bytes: 1 << 20})
	q := Request{Key: KeyOf([]byte("q"))}
	r, _, _ := c.Do(q, speak(0, time.Hour, strings.Split(strings.Repeat("word ", 100), " ")...))
	if _, err := text(r); err != nil {
		t.Fatal(err)
	}
	r.Close()
	got := testing.AllocsPerRun(1000, func() {
		r, _, _ := c.Do(q, nil)
		for range 50 {
			if _, err := r.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		r.Close()
	})
	if most := 6.0; got > most {
		t.Errorf("%v allocations, want at most %v", got, most)
	}
}

// Between an answer's end and the store, who asks reads the flight, though its
// readers have left; and what is dropped then is not kept.
func TestLandedFlight(t *testing.T) {
	for _, drop := range []bool{false, true} {
		c := open(t, Config{Bytes: 1 << 20})
		q := Request{Key: KeyOf([]byte("q")), Owner: Owner{Tenant: "acme"}}
		c.keeping.Lock() // nothing is kept while this is held
		r, o, _ := c.Do(q, speak(0, time.Hour, "a", "b"))
		want(t, r, o, Miss, "ab")
		r, o, _ = c.Do(q, nil)
		if r.Opening() != nil || !r.Began().IsZero() {
			t.Errorf("a hit is told of its maker's wait: %v", r.Opening())
		}
		want(t, r, o, Hit, "ab")
		if drop {
			dropped := make(chan int)
			go func() { dropped <- c.Drop(q.Owner) }()
			c.keeping.Unlock()
			if n := <-dropped; n != 1 {
				t.Errorf("dropped %d answers, want 1", n)
			}
			r, o, _ = c.Do(q, speak(0, 0, "anew"))
			want(t, r, o, Miss, "anew")
			continue
		}
		c.keeping.Unlock()
		c.work.Wait()
		r, o, _ = c.Do(q, nil)
		want(t, r, o, Hit, "ab")
	}
}

// A refresh that fails leaves the answer that was about to be kept before it,
// one that does not is kept after it; and what is dropped meanwhile is not kept.
func TestRefreshOfALandedFlight(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		drop  bool
		wants string // "" where nothing is kept
	}{
		{"fails", errors.New("failed"), false, "old"},
		{"works", nil, false, "new"},
		{"dropped", nil, true, ""},
		{"dropped and fails", errors.New("failed"), true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, Config{Bytes: 1 << 20})
			q := Request{Key: KeyOf([]byte("q"))}
			var dropped sync.WaitGroup
			c.keeping.RLock() // Drop waits for this, and who comes to keep for Drop
			dropped.Go(func() {
				if tt.drop {
					c.Drop(Owner{})
					return
				}
				c.keeping.Lock()
				defer c.keeping.Unlock()
			})
			for c.keeping.TryRLock() {
				c.keeping.RUnlock()
				runtime.Gosched()
			}
			r, o, _ := c.Do(q, speak(0, time.Hour, "old"))
			want(t, r, o, Miss, "old")
			q.Refresh = true
			r, _, _ = c.Do(q, func(_ context.Context, rec *Recording) (time.Duration, error) {
				c.keeping.RUnlock()
				dropped.Wait()
				rec.Append([]byte("new"))
				return time.Hour, tt.err
			})
			_, _ = text(r)
			r.Close()
			c.work.Wait()
			kept := ""
			if e, ok := c.store.get(q.Key); ok {
				kept = string(e.chunks[0])
			}
			if kept != tt.wants {
				t.Errorf("kept %q, want %q", kept, tt.wants)
			}
		})
	}
}

// A key whose kept answer is about to be replaced is dropped once.
func TestDropCountsKeys(t *testing.T) {
	c := open(t, Config{Bytes: 1 << 20})
	q := Request{Key: KeyOf([]byte("q")), Refresh: true}
	r, o, _ := c.Do(q, speak(0, time.Hour, "old"))
	want(t, r, o, Miss, "old")
	c.work.Wait()
	c.keeping.RLock() // Drop waits
	dropped := make(chan int)
	go func() { dropped <- c.Drop(Owner{}) }()
	for c.keeping.TryRLock() { // until it does, and so does who comes to keep
		c.keeping.RUnlock()
		runtime.Gosched()
	}
	r, o, _ = c.Do(q, speak(0, time.Hour, "new"))
	want(t, r, o, Miss, "new")
	c.keeping.RUnlock()
	if n := <-dropped; n != 1 {
		t.Errorf("dropped %d answers, want 1", n)
	}
}

// Flights that outgrow their cap while others join them: whoever reads one
// reads it from the start.
func TestJoinAsItOutgrowsItsCap(t *testing.T) {
	c := open(t, Config{FlightBytes: 64})
	const words = 40
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 300 {
				r, _, _ := c.Do(Request{Key: KeyOf([]byte("q"))}, func(_ context.Context, rec *Recording) (time.Duration, error) {
					for i := range words {
						rec.Append([]byte{byte(i), 0, 0, 0})
					}
					return 0, nil
				})
				for next := byte(0); ; next++ {
					chunk, err := r.Next(t.Context())
					if err != nil {
						if !errors.Is(err, ErrLagged) && (!errors.Is(err, io.EOF) || next != words) {
							t.Errorf("after %d chunks: %v", next, err)
						}
						break
					}
					if chunk[0] != next {
						t.Errorf("chunk %d came as chunk %d", chunk[0], next)
						break
					}
				}
				r.Close()
			}
		})
	}
	all.Wait()
}

// A goroutine that waits for the next work holds nothing of the last.
func TestIdleHoldsNothing(t *testing.T) {
	c := open(t, Config{})
	gone := func() weak.Pointer[[4 << 10]byte] {
		text := new([4 << 10]byte)
		r, o, _ := c.Do(Request{}, func(_ context.Context, rec *Recording) (time.Duration, error) {
			rec.Append(text[:1])
			return 0, nil
		})
		want(t, r, o, Bypass, "\x00")
		return weak.Make(text)
	}()
	for deadline := time.Now().Add(10 * time.Second); gone.Value() != nil; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatal("the text of a finished request is still held")
		}
	}
}

// Who wants an answer whole is woken at its end, or when more comes than is held.
func TestWaitForTheWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{FlightBytes: 10})
		for _, step := range []struct {
			words []string
			woken time.Duration
		}{
			{[]string{"a", "b", "c"}, 3 * time.Second},
			{[]string{"a", strings.Repeat("b", 10), "c"}, 2 * time.Second},
		} {
			start := time.Now()
			r, _, _ := c.Do(Request{}, speak(time.Second, 0, step.words...))
			for {
				more, ready := r.Wait(true)
				if ready {
					break
				}
				<-more
			}
			if took := time.Since(start); took != step.woken {
				t.Errorf("%q: woken after %v, want %v", step.words, took, step.woken)
			}
			want(t, r, Miss, Miss, strings.Join(step.words, ""))
			synctest.Wait()
		}
	})
}
