package alarm

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// Whatever is set, put off, brought forward and stopped: an alarm rings when
// it was last set to, once, and no other does.
func TestAlarmsRingInTime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type step struct {
			at    time.Duration // of doing it
			alarm int
			after time.Duration // 0: stop it
		}
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{
				// Odd and even milliseconds: nothing is done at the instant that an alarm rings.
				time.Duration(2*rapid.IntRange(1, 50).Draw(rt, "at")+1) * time.Millisecond, rapid.IntRange(0, 4).Draw(rt, "alarm"),
				time.Duration(2*rapid.IntRange(0, 30).Draw(rt, "after")) * time.Millisecond,
			}
		}), 0, 30).Draw(rt, "steps")
		synctest.Test(t, func(*testing.T) {
			var clock Clock
			start := time.Now()
			var rang, due [5][]time.Duration
			var alarms [5]*Alarm
			for i := range alarms {
				alarms[i] = clock.New(func() { rang[i] = append(rang[i], time.Since(start)) })
			}
			var when [5]time.Duration
			for now := time.Duration(0); now < 400*time.Millisecond; now += time.Millisecond {
				time.Sleep(now - time.Since(start))
				for i := range when {
					if when[i] != 0 && when[i] <= now {
						due[i] = append(due[i], when[i])
						when[i] = 0
					}
				}
				synctest.Wait()
				for _, s := range steps {
					switch {
					case s.at != now:
					case s.after == 0:
						alarms[s.alarm].Stop()
						when[s.alarm] = 0
					default:
						alarms[s.alarm].Set(time.Now().Add(s.after))
						when[s.alarm] = now + s.after
					}
				}
			}
			for i := range alarms {
				if len(rang[i]) != len(due[i]) {
					rt.Fatalf("alarm %d rang at %v, want %v", i, rang[i], due[i])
				}
				for j := range rang[i] {
					if rang[i][j] != due[i][j] {
						rt.Fatalf("alarm %d rang at %v, want %v", i, rang[i], due[i])
					}
				}
			}
			if len(clock.alarms) != 0 {
				rt.Fatalf("%d alarms are left", len(clock.alarms))
			}
		})
	})
}

func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var clock Clock
		late := errors.New("late")
		start := time.Now()
		ctx, cancel := clock.Context(t.Context(), time.Second, late)
		defer cancel()
		<-ctx.Done()
		if got := time.Since(start); got != time.Second || !errors.Is(context.Cause(ctx), late) {
			t.Errorf("ended after %v for %v", got, context.Cause(ctx))
		}
		ctx, cancel = clock.Context(t.Context(), time.Second, late)
		cancel()
		if !errors.Is(context.Cause(ctx), context.Canceled) || len(clock.alarms) != 0 {
			t.Errorf("cancelled: cause %v, %d alarms left", context.Cause(ctx), len(clock.alarms))
		}
		ctx, cancel = clock.Context(t.Context(), 0, late)
		time.Sleep(time.Hour)
		if ctx.Err() != nil {
			t.Errorf("without a limit: %v", context.Cause(ctx))
		}
		cancel()
	})
}

// A connection's deadlines do what net.Conn promises of them.
func TestDeadlines(t *testing.T) {
	var clock Clock
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := clock.NewConn(near)
	buf := make([]byte, 1<<20)
	read := func(step string, want error) {
		t.Helper()
		if _, err := c.Read(buf); !errors.Is(err, want) {
			t.Errorf("%s: read with %v, want %v", step, err, want)
		}
	}
	set := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	set(c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)))
	read("it comes while reading", os.ErrDeadlineExceeded)
	read("it has passed", os.ErrDeadlineExceeded)
	set(c.SetReadDeadline(time.Now().Add(time.Hour)))
	if _, err := far.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	read("it was put off", nil)
	set(c.SetDeadline(time.Unix(1, 0)))
	read("it is in the past", os.ErrDeadlineExceeded)
	if _, err := c.Write(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("written with %v", err)
	}
	set(c.SetDeadline(time.Time{}))
	set(c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)))
	set(c.SetReadDeadline(time.Time{}))
	time.AfterFunc(40*time.Millisecond, func() { _, _ = far.Write([]byte("x")) })
	read("it was taken back", nil)
	set(c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)))
	for err = nil; err == nil; _, err = c.Write(buf) { // nobody reads
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("written with %v", err)
	}
	set(c.SetDeadline(time.Now().Add(time.Hour)))
	set(c.Close())
	if err := c.SetDeadline(time.Now().Add(time.Hour)); !errors.Is(err, net.ErrClosed) || len(clock.alarms) != 0 {
		t.Errorf("closed: deadline set with %v, %d alarms left", err, len(clock.alarms))
	}
}
