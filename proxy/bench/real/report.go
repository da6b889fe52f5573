package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// summary is the medians of a scenario's rounds, one way.
type summary struct {
	loads, unloads, ofT0, evictions int
	refused, failed                 int // of all rounds together: none is to be
	p50, p95, most                  time.Duration
	mean                            time.Duration // of answers, waits included
	makespan                        time.Duration
	victim                          time.Duration // longest of all rounds
	bound                           time.Duration // of the victim: the shortest of all rounds
}

func summarize(rounds []outcome) *summary {
	var sum summary
	var loads, unloads, ofT0, evictions []int
	var p50, p95, most, mean, makespan []time.Duration
	for _, o := range rounds {
		loads, unloads = append(loads, o.loads), append(unloads, o.unloads)
		ofT0, evictions = append(ofT0, o.ofT0), append(evictions, o.evictions)
		var waits []time.Duration
		total := time.Duration(0)
		for _, r := range o.replies {
			if !r.answered() {
				sum.refused++
			}
			waits = append(waits, r.wait)
			total += r.took
		}
		slices.Sort(waits)
		p50, p95, most = append(p50, quantile(waits, .5)), append(p95, quantile(waits, .95)), append(most, quantile(waits, 1))
		mean, makespan = append(mean, total/time.Duration(max(len(waits), 1))), append(makespan, o.makespan)
		sum.failed += o.failed
		for _, r := range o.victims() {
			sum.victim = max(sum.victim, r.wait)
			bound := hogMaxWait + o.load + quantile(o.services(), 1)
			if sum.bound == 0 || bound < sum.bound {
				sum.bound = bound
			}
		}
	}
	sum.loads, sum.unloads, sum.ofT0, sum.evictions = median(loads), median(unloads), slices.Max(ofT0), median(evictions)
	sum.p50, sum.p95, sum.most, sum.mean, sum.makespan = median(p50), median(p95), median(most), median(mean), median(makespan)
	return &sum
}

const hogMaxWait = 3 * time.Second // TENURE_MAX_WAIT of S3; it is 4 s elsewhere, as loads are a tenth of the catalog's

// quantile of a sorted sample; 0 of an empty one.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func median[T int | time.Duration](list []T) T {
	s := slices.Sorted(slices.Values(list))
	return s[len(s)/2]
}

// verdict is one thing that tenure is to reach.
type verdict struct {
	what string
	ok   bool
}

func atMost(what string, got, limit int) verdict {
	return verdict{fmt.Sprintf("%s %d, at most %d", what, got, limit), got <= limit}
}

func noRefusal(ours *summary) verdict { return atMost("refusals", ours.refused+ours.failed, 0) }

func noT0(ours *summary) verdict { return atMost("T0 unloaded", ours.ofT0, 0) }

// slower allows 5 % more.
func slower(what string, plain, ours time.Duration) verdict {
	ratio := ours.Seconds() / plain.Seconds()
	return verdict{fmt.Sprintf("%s %.2f of Ollama's, at most 1.05", what, ratio), ratio <= 1.05}
}

func fewerLoadsSameP95(plain, ours *summary) []verdict {
	return []verdict{
		{fmt.Sprintf("loads %d, fewer than %d", ours.loads, plain.loads), ours.loads < plain.loads},
		{fmt.Sprintf("p95 of waits %s, at most %s", seconds(ours.p95), seconds(plain.p95)), ours.p95 <= plain.p95},
		noRefusal(ours), noT0(ours),
	}
}

func asFast(plain, ours *summary) []verdict {
	return []verdict{slower("makespan", plain.makespan, ours.makespan), noRefusal(ours), noT0(ours)}
}

func judgeHog(_, ours *summary) []verdict {
	return []verdict{
		{fmt.Sprintf("the fourth model's wait %s, at most %s (T_max, a load, a service)", seconds(ours.victim), seconds(ours.bound)), ours.victim <= ours.bound},
		noRefusal(ours), noT0(ours),
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// report prints what was seen, and whether it is as it should be.
func report(w io.Writer, o options, all []scenario, results []map[string][]outcome) {
	cpus := "all of them"
	if o.cpus != "" {
		cpus = "core " + o.cpus
	}
	fmt.Fprintf(w, "%d cores, Ollama on %s, load average %s; seed %d and on, medians of %d rounds\n\n", runtime.NumCPU(), cpus, loadAverage(), o.seed, o.rounds)
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| scenario\t| way\t| loads\t| unloads\t| of T0\t| wait p50\t| p95\t| max\t| mean answer\t| makespan\t| refused\t|")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	var verdicts strings.Builder
	for i, s := range all {
		sums := map[string]*summary{}
		for _, way := range s.ways() {
			m := summarize(results[i][way])
			sums[way] = m
			fmt.Fprintf(t, "| %s\t| %s\t| %d\t| %d\t| %d\t| %s\t| %s\t| %s\t| %s\t| %s\t| %d\t|\n", s.name, way, m.loads, m.unloads, m.ofT0,
				seconds(m.p50), seconds(m.p95), seconds(m.most), seconds(m.mean), seconds(m.makespan), m.refused+m.failed)
			if m.victim > 0 {
				fmt.Fprintf(t, "| %s, the fourth model\t| %s\t|\t|\t|\t|\t|\t| %s\t|\t|\t|\t|\n", s.name, way, seconds(m.victim))
			}
		}
		for _, way := range s.ways()[1:] {
			if way == balanced {
				continue // fewer loads for longer waits, by choice
			}
			for _, v := range s.judge(sums[straight], sums[way]) {
				if way == equal && strings.HasPrefix(v.what, "T0") {
					continue // there is none
				}
				word := "reached"
				if !v.ok {
					word = "MISSED"
				}
				fmt.Fprintf(&verdicts, "%-8s %s, %s: %s\n", word, s.name, way, v.what)
			}
		}
	}
	_ = t.Flush() // as with every table
	fmt.Fprintln(w)
	for _, s := range all {
		fmt.Fprintf(w, "%s: %s\n", s.name, s.what)
	}
	fmt.Fprintf(w, "\n%s", verdicts.String())
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
