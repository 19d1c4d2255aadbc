package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// plotClients are the loads of a plot: so many clients, each with one operation under way.
var plotClients = []int{1, 3, 10, 30, 100, 300, 1000}

// plotted are the rows that are plotted, with other numbers of clients than their own.
var plotted = []string{"put", "get"}

// curve is the latency of one operation against the load.
type curve struct {
	Name   string  `json:"name"`
	Title  string  `json:"title"`
	Points []point `json:"points"`
}

// point is one load, for both systems.
type point struct {
	Clients   int    `json:"clients"`
	Base      sample `json:"base"`
	Logmirror sample `json:"logmirror"`
}

// runPlots drives both systems with more and more clients, the one first and then the other.
func runPlots(ctx context.Context, o options, base, logmirror *system) (curves []curve, err error) {
	for _, name := range plotted {
		chosen, err := chooseRows(name)
		if err != nil {
			return nil, err
		}
		r := chosen[0]
		c := curve{Name: name, Title: strings.TrimSuffix(r.title, ", clients spread")}
		for i, clients := range plotClients {
			r.clients, r.connections = clients, min(clients, r.connections)
			p := point{Clients: clients}
			for j := range 2 {
				s, into := base, &p.Base
				if (i+j)%2 == 1 {
					s, into = logmirror, &p.Logmirror
				}
				if *into, err = drive(ctx, s, r, o.keys, o.duration); err != nil {
					return nil, fmt.Errorf("plot of %s on %s: %w", name, s.name, err)
				}
			}
			c.Points = append(c.Points, p)
			r.connections = chosen[0].connections
		}
		curves = append(curves, c)
	}
	return curves, nil
}

// writePlots writes each curve as a picture into the directory.
func writePlots(directory, baseName string, curves []curve) error {
	if len(curves) == 0 {
		return nil
	}
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	for i := range curves {
		picture := curves[i].svg(baseName)
		if err := os.WriteFile(filepath.Join(directory, "latency-"+curves[i].Name+".svg"), []byte(picture), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func plotMarkdown(w io.Writer, baseName string, curves []curve) error {
	for _, c := range curves {
		_, err := fmt.Fprintf(w, "\n| %s, clients | %s ops/s | p50 / p99 ms | logmirror ops/s | p50 / p99 ms |\n|---|---|---|---|---|\n", c.Title, baseName)
		if err != nil {
			return err
		}
		for _, p := range c.Points {
			if _, err := fmt.Fprintf(w, "| %d | %.0f | %.1f / %.1f | %.0f | %.1f / %.1f |\n", p.Clients,
				p.Base.OperationsPerSecond, p.Base.P50Milliseconds, p.Base.P99Milliseconds,
				p.Logmirror.OperationsPerSecond, p.Logmirror.P50Milliseconds, p.Logmirror.P99Milliseconds); err != nil {
				return err
			}
		}
	}
	return nil
}

// Measures of a picture, in pixels.
const (
	plotWidth, plotHeight          = 720, 420
	plotLeft, plotRight            = 70, 20
	plotTop, plotBottom            = 50, 50
	baseColour, ours, gridColour   = "#b5651d", "#1f5fa8", "#dddddd"
	medianStyle, percentile99Style = "", ` stroke-dasharray="5 4"`
)

// scale maps values to pixels: by their logarithm, over whole decades, or evenly from zero on.
type scale struct {
	even       bool
	low, high  float64 // decades, or values
	step       float64 // between two lines of the grid
	from, span float64 // pixels
}

func newScale(values []float64, from, span float64) scale {
	s := scale{low: math.Inf(1), high: math.Inf(-1), step: 1, from: from, span: span}
	for _, v := range values {
		decade := math.Log10(max(v, 1e-3))
		s.low, s.high = min(s.low, math.Floor(decade)), max(s.high, math.Ceil(decade))
	}
	s.high = max(s.high, s.low+1)
	return s
}

// newEvenScale has a grid of at most ten lines, at round values.
func newEvenScale(values []float64, from, span float64) scale {
	most := 1e-3
	for _, v := range values {
		most = max(most, v)
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	switch {
	case most/step < 2:
		step /= 5
	case most/step < 5:
		step /= 2
	}
	return scale{even: true, high: math.Ceil(most/step) * step, step: step, from: from, span: span}
}

func (s scale) at(v float64) float64 {
	if !s.even {
		v = math.Log10(max(v, 1e-3))
	}
	return s.from + s.span*(v-s.low)/(s.high-s.low)
}

// grid are the values that have a line.
func (s scale) grid() (values []float64) {
	for i := 0; s.low+float64(i)*s.step <= s.high+s.step/1e3; i++ {
		v := s.low + float64(i)*s.step
		if !s.even {
			v = math.Pow(10, v)
		}
		values = append(values, v)
	}
	return values
}

// Where the axes of a picture are.
func plotX(values []float64, even bool) scale {
	if even {
		return newEvenScale(values, plotLeft, plotWidth-plotLeft-plotRight)
	}
	return newScale(values, plotLeft, plotWidth-plotLeft-plotRight)
}

func plotY(values []float64, even bool) scale {
	if even {
		return newEvenScale(values, plotHeight-plotBottom, -(plotHeight - plotTop - plotBottom))
	}
	return newScale(values, plotHeight-plotBottom, -(plotHeight - plotTop - plotBottom))
}

// beginPicture draws the grid with its values, and the titles.
func beginPicture(b *strings.Builder, x, y scale, title, xTitle, yTitle string) {
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n"+
		`<rect width="100%%" height="100%%" fill="white"/>`+"\n", plotWidth, plotHeight)
	for _, v := range x.grid() {
		fmt.Fprintf(b, `<path d="M%.1f %d V%d" stroke="%s"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			x.at(v), plotTop, plotHeight-plotBottom, gridColour, x.at(v), plotHeight-plotBottom+18, plain(v))
	}
	for _, v := range y.grid() {
		fmt.Fprintf(b, `<path d="M%d %.1f H%d" stroke="%s"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			plotLeft, y.at(v), plotWidth-plotRight, gridColour, plotLeft-6, y.at(v)+4, plain(v))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", plotWidth/2, plotHeight-12, xTitle)
	fmt.Fprintf(b, `<text x="16" y="%d" transform="rotate(-90 16 %d)" text-anchor="middle">%s</text>`+"\n", plotHeight/2, plotHeight/2, yTitle)
	fmt.Fprintf(b, `<text x="%d" y="20" font-size="14">%s</text>`+"\n", plotLeft, title)
}

// plain writes a value without an exponent.
func plain(v float64) string { return strconv.FormatFloat(math.Round(v*1e6)/1e6, 'f', -1, 64) }

func drawLine(b *strings.Builder, points []string, colour, style string) {
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n", strings.Join(points, " "), colour, style)
}

// svg draws latency upwards against operations per second, both in decades: a line for each system's median, a dashed one for
// its 99th percentile, and the number of clients at each point of the medians.
func (c *curve) svg(baseName string) string {
	var rates, latencies []float64
	for _, p := range c.Points {
		for _, s := range []sample{p.Base, p.Logmirror} {
			rates = append(rates, s.OperationsPerSecond)
			latencies = append(latencies, s.P50Milliseconds, s.P99Milliseconds)
		}
	}
	x, y := plotX(rates, false), plotY(latencies, false)
	var b strings.Builder
	beginPicture(&b, x, y, c.Title+": median (line) and 99th percentile (dashed), by number of clients", "operations per second", "latency in ms")
	for i, system := range []struct {
		name, colour string
		of           func(point) sample
	}{{baseName, baseColour, func(p point) sample { return p.Base }}, {"logmirror", ours, func(p point) sample { return p.Logmirror }}} {
		fmt.Fprintf(&b, `<text x="%d" y="38" fill="%s">%s</text>`+"\n", plotLeft+i*90, system.colour, system.name)
		line := func(style string, latency func(sample) float64) {
			var points []string
			for _, p := range c.Points {
				s := system.of(p)
				points = append(points, fmt.Sprintf("%.1f,%.1f", x.at(s.OperationsPerSecond), y.at(latency(s))))
			}
			drawLine(&b, points, system.colour, style)
		}
		line(medianStyle, func(s sample) float64 { return s.P50Milliseconds })
		line(percentile99Style, func(s sample) float64 { return s.P99Milliseconds })
		for _, p := range c.Points {
			s := system.of(p)
			atX, atY := x.at(s.OperationsPerSecond), y.at(s.P50Milliseconds)
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/><text x="%.1f" y="%.1f" font-size="10" fill="%s">%d</text>`+"\n",
				atX, atY, system.colour, atX+5, atY+12, system.colour, p.Clients)
		}
	}
	return b.String() + "</svg>\n"
}
