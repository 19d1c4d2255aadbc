package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// summary is what the runs of one drill came to.
type summary struct {
	Drill   string   `json:"drill"`
	Runs    int      `json:"runs"`
	Failed  int      `json:"failed"`
	Skipped int      `json:"skipped,omitempty"`
	Numbers []spread `json:"numbers"`
}

// spread is one number over all runs that measured it: a run that failed may have ended before.
type spread struct {
	number
	Runs   int     `json:"runs"`
	Median float64 `json:"median"`
	Worst  float64 `json:"worst"`
}

// summarize puts the runs of one drill together. A number keeps the place of its first appearance; the goal and the value are
// those of the worst run.
func summarize(runs []*result) (s summary) {
	values, worst := map[string][]float64{}, map[string]number{}
	var names []string
	for _, r := range runs {
		s.Drill = r.Drill
		s.Runs++
		switch {
		case r.Skipped != "":
			s.Skipped++
		case r.failed():
			s.Failed++
		}
		for _, n := range r.Numbers {
			if _, known := values[n.Name]; !known {
				names = append(names, n.Name)
				worst[n.Name] = n
			}
			values[n.Name] = append(values[n.Name], n.Value)
			if worse(n, worst[n.Name]) {
				worst[n.Name] = n
			}
		}
	}
	for _, name := range names {
		s.Numbers = append(s.Numbers, spread{number: worst[name], Runs: len(values[name]),
			Median: median(values[name]), Worst: worst[name].Value})
	}
	return s
}

// worse tells whether a missed its goal and b did not; where they are alike in that, whether a is larger. Goals differ from run
// to run by what is usual in each, so the largest value need not be the one that missed.
func worse(a, b number) bool {
	if a.missed() != b.missed() {
		return a.missed()
	}
	return a.Value > b.Value
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

func (s summary) show(w io.Writer, how string) error {
	if how == "json" {
		return json.NewEncoder(w).Encode(s)
	}
	var text strings.Builder
	verdict := fmt.Sprintf("%d runs, %d failed", s.Runs, s.Failed)
	if s.Skipped > 0 {
		verdict += fmt.Sprintf(", %d skipped", s.Skipped)
	}
	if how == "markdown" {
		fmt.Fprintf(&text, "\n**%s**: %s\n\n| | median | worst | goal |\n|---|---|---|---|\n", s.Drill, verdict)
	} else {
		fmt.Fprintf(&text, "%s: %s\n  %-84s %10s %10s\n", s.Drill, verdict, "", "median", "worst")
	}
	for _, n := range s.Numbers {
		goal := ""
		if n.AtMost != nil {
			goal = "at most " + n.text(*n.AtMost)
			if n.missed() {
				goal += ", MISSED"
			}
		}
		if n.Runs < s.Runs {
			goal = strings.TrimPrefix(goal+fmt.Sprintf("; %d runs", n.Runs), "; ")
		}
		if how == "markdown" {
			fmt.Fprintf(&text, "| %s | %s | %s | %s |\n", n.Name, n.text(n.Median), n.text(n.Worst), goal)
		} else {
			fmt.Fprintf(&text, "  %-84s %10s %10s  %s\n", n.Name, n.text(n.Median), n.text(n.Worst), goal)
		}
	}
	_, err := io.WriteString(w, text.String())
	return err
}
