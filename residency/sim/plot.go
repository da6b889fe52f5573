package sim

import (
	"bufio"
	"fmt"
	"io"
	"math"
)

// Plot draws, as SVG, the share of requests that waited longer than a time, by
// policy, both axes logarithmic: tails are what differs.
func Plot(w io.Writer, title string, results []Result) error {
	const width, height, left, top, right, bottom = 860, 480, 70, 50, 150, 50
	const least, floor = .1, 1e-4 // seconds, share
	longest := 10.0
	for _, r := range results {
		longest = max(longest, r.MaxWait)
	}
	longest = math.Pow(10, math.Ceil(math.Log10(longest)))
	x := func(s float64) float64 {
		return left + (width-left-right)*math.Log(max(s, least)/least)/math.Log(longest/least)
	}
	y := func(share float64) float64 {
		return top + (height-top-bottom)*math.Log(max(share, floor))/math.Log(floor)
	}
	colours := []string{"#8c8c8c", "#b07aa1", "#e15759", "#f28e2b", "#4e79a7", "#59a14f"}
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(out, `<rect width="100%%" height="100%%" fill="white"/><text x="%d" y="24" font-size="15">%s</text>`+"\n", left, title)
	fmt.Fprintf(out, `<text x="%d" y="%d">wait longer than (s); simulated</text>`+"\n", left+(width-left-right)/2-70, height-12)
	for s := least; s <= longest*1.001; s *= 10 {
		fmt.Fprintf(out, `<path d="M%.1f %d V%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n", x(s), top, height-bottom, x(s), height-bottom+18, math.Round(s*10)/10)
	}
	for share := 1.0; share >= floor/1.001; share /= 10 {
		fmt.Fprintf(out, `<path d="M%d %.1f H%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g %%</text>`+"\n", left, y(share), width-right, left-8, y(share)+4, math.Round(share*1e4)/100)
	}
	for i, r := range results {
		colour := colours[i%len(colours)]
		fmt.Fprintf(out, `<path fill="none" stroke="%s" stroke-width="2" d="`, colour)
		n := len(r.waits)
		step := max(1, n/400)
		verb := "M"
		for k := range n {
			// Every request of the tail, a sample of the rest.
			if k%step != 0 && n-k > 200 {
				continue
			}
			fmt.Fprintf(out, "%s%.1f %.1f", verb, x(r.waits[k]), y(float64(n-k)/float64(n)))
			verb = "L"
		}
		fmt.Fprintf(out, `"/><text x="%d" y="%d" fill="%s">%s</text>`+"\n", width-right+12, top+16+18*i, colour, r.Policy)
	}
	fmt.Fprintln(out, "</svg>")
	return out.Flush()
}
