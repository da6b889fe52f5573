package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// quantiles of a sample, in microseconds.
type quantiles struct {
	P50 float64 `json:"p50_us"`
	P90 float64 `json:"p90_us"`
	P99 float64 `json:"p99_us"`
}

func micro(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func quantilesOf(sample []time.Duration) quantiles {
	if len(sample) == 0 {
		return quantiles{}
	}
	s := slices.Sorted(slices.Values(sample))
	at := func(q float64) float64 { return micro(s[min(len(s)-1, int(q*float64(len(s))))]) }
	return quantiles{at(.5), at(.9), at(.99)}
}

func (q quantiles) less(o quantiles) quantiles {
	return quantiles{q.P50 - o.P50, q.P90 - o.P90, q.P99 - o.P99}
}

type (
	latency struct {
		Way       string    `json:"way"`
		Bytes     int       `json:"bytes"`
		Quantiles quantiles `json:"latency"`
		Added     quantiles `json:"added"`
		CPU       float64   `json:"cpu_us"`
	}
	stream struct {
		Way          string    `json:"way"`
		First        quantiles `json:"first_token"`
		FirstAdded   quantiles `json:"first_token_added"`
		Transit      quantiles `json:"chunk_transit"`
		TransitAdded quantiles `json:"chunk_transit_added"`
	}
	rate struct {
		Way       string    `json:"way"`
		Clients   int       `json:"clients"`
		PerSecond float64   `json:"per_second"`
		Quantiles quantiles `json:"latency"`
		CPU       float64   `json:"cpu_us"`
	}
	memory struct {
		Way string  `json:"way"`
		MiB float64 `json:"rss_mib"`
	}
	figure struct {
		What  string  `json:"what"`
		Ratio float64 `json:"ratio"`
		Aim   float64 `json:"aim"` // at most
	}
	report struct {
		Figures    []figure  `json:"figures"`
		Machine    string    `json:"machine"`
		Latency    []latency `json:"latency"`
		Streams    []stream  `json:"streams"`
		Throughput []rate    `json:"throughput"`
		Memory     []memory  `json:"memory"`
	}
)

// figures are what the hop is judged by.
func (r *report) figures() (list []figure) {
	at := func(way string, bytes int) latency {
		return r.Latency[slices.IndexFunc(r.Latency, func(l latency) bool { return l.Way == way && l.Bytes == bytes })]
	}
	streamed := func(way string) stream {
		return r.Streams[slices.IndexFunc(r.Streams, func(s stream) bool { return s.Way == way })]
	}
	const plain, miss = reverseProxy, "tenure, miss"
	return []figure{
		{"10 KB: added p50 of a miss, to the ReverseProxy's", at(miss, 10<<10).Added.P50 / at(plain, 10<<10).Added.P50, 1.5},
		{"10 KB: p50 of a hit, to the gin handler's", at("tenure, hit", 10<<10).Quantiles.P50 / at("gin handler", 10<<10).Quantiles.P50, 1.3},
		{"10 KB: added time to first token, to the ReverseProxy's", streamed(miss).FirstAdded.P50 / streamed(plain).FirstAdded.P50, 1.5},
		{"10 KB: added chunk transit, to the ReverseProxy's", streamed(miss).TransitAdded.P50 / streamed(plain).TransitAdded.P50, 1.5},
		{"64 KB: CPU of a miss, to the ReverseProxy's", at(miss, 64<<10).CPU / at(plain, 64<<10).CPU, 2},
	}
}

// print writes the tables. Ratios are to the ReverseProxy of the same run.
func (r *report) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintf(t, "%s\n\n| figure\t| ratio\t| aim\t|\n|---|---|---|\n", r.Machine)
	for _, f := range r.Figures {
		fmt.Fprintf(t, "| %s\t| %.2f\t| %.1f\t|\n", f.What, f.Ratio, f.Aim)
	}
	fmt.Fprintf(t, "\nOne client, one request at a time (added: less direct; ratio: to the ReverseProxy's)\n\n")
	fmt.Fprintln(t, "| way\t| bytes\t| p50 us\t| added p50\t| p90\t| p99\t| ratio\t| CPU us\t| ratio\t|\n|---|---|---|---|---|---|---|---|---|")
	for _, l := range r.Latency {
		base := r.Latency[slices.IndexFunc(r.Latency, func(b latency) bool { return b.Way == reverseProxy && b.Bytes == l.Bytes })]
		fmt.Fprintf(t, "| %s\t| %d\t| %.0f\t| %.0f\t| %.0f\t| %.0f\t| %.2f\t| %.0f\t| %.2f\t|\n", l.Way, l.Bytes, l.Quantiles.P50,
			l.Added.P50, l.Added.P90, l.Added.P99, l.Added.P50/base.Added.P50, l.CPU, l.CPU/base.CPU)
	}
	fmt.Fprintf(t, "\nStreams of %d chunks, 10 KB asked\n\n", streamChunks)
	fmt.Fprintln(t, "| way\t| first token p50 us\t| added\t| ratio\t| chunk transit p50 us\t| added\t| ratio\t|\n|---|---|---|---|---|---|---|")
	for _, s := range r.Streams {
		base := r.Streams[slices.IndexFunc(r.Streams, func(b stream) bool { return b.Way == reverseProxy })]
		fmt.Fprintf(t, "| %s\t| %.0f\t| %.0f\t| %.2f\t| %.0f\t| %.0f\t| %.2f\t|\n", s.Way, s.First.P50, s.FirstAdded.P50, s.FirstAdded.P50/base.FirstAdded.P50,
			s.Transit.P50, s.TransitAdded.P50, s.TransitAdded.P50/base.TransitAdded.P50)
	}
	fmt.Fprintln(t, "\nMany clients, 10 KB asked")
	fmt.Fprintln(t, "\n| way\t| clients\t| answers/s\t| p50 us\t| p99 us\t| CPU us\t|\n|---|---|---|---|---|---|")
	for _, x := range r.Throughput {
		fmt.Fprintf(t, "| %s\t| %d\t| %.0f\t| %.0f\t| %.0f\t| %.0f\t|\n", x.Way, x.Clients, x.PerSecond, x.Quantiles.P50, x.Quantiles.P99, x.CPU)
	}
	fmt.Fprintln(t, "\n| memory afterwards\t| RSS MiB\t|\n|---|---|")
	for _, m := range r.Memory {
		fmt.Fprintf(t, "| %s\t| %.0f\t|\n", m.Way, m.MiB)
	}
	_ = t.Flush() // as with every table
}
