package pages

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// site is where a voter or a frontend is: a region, and a zone of it.
type site struct{ region, zone string }

// distance is half of a round trip in milliseconds, by the distances that the page names. Zones of a region are 2 ms apart. Pairs
// that it calls further away than others are as far as can be.
func distance(a, b site) float64 {
	roundTrips := map[string]float64{"us eu": 80, "us ap": 150, "eu ap": 100, "us sa": 120, "eu sa": 190, "us af": 220, "eu af": 140}
	switch {
	case a == b:
		return 0
	case a.region == b.region:
		return 1
	}
	for _, pair := range []string{a.region + " " + b.region, b.region + " " + a.region} {
		if roundTrip, known := roundTrips[pair]; known {
			return roundTrip / 2
		}
	}
	return 1e6
}

// majority is the majority-th smallest of what f tells of each voter.
func majority(voters []site, f func(v site) float64) float64 {
	all := make([]float64, len(voters))
	for i, v := range voters {
		all[i] = f(v)
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// cost is what a put and a linearizable read take through a frontend: the formulas of docs/ARCHITECTURE.md. The first voter
// leads.
func cost(voters []site, from site) (put, get float64) {
	leader, nearest := voters[0], voters[0]
	for _, v := range voters {
		if distance(from, v) < distance(from, nearest) {
			nearest = v
		}
	}
	there := func(v site) float64 { return distance(leader, v) + distance(v, nearest) }
	put = distance(nearest, leader) + max(distance(leader, nearest), majority(voters, there))
	get = majority(voters, func(v site) float64 { return 2 * distance(nearest, v) })
	more := 2 * distance(from, nearest)
	return put + more, get + more
}

// The page tells of each topology what the formulas say.
func TestTopologiesCostWhatThePageSays(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	sites := func(all string) (voters []site) {
		for name := range strings.FieldsSeq(all) {
			voters = append(voters, site{strings.TrimRight(name, "123"), name})
		}
		return voters
	}
	for row, voters := range map[string][]site{
		"three zones of us":              sites("us1 us2 us3"),
		"us, eu, ap |":                   sites("us1 eu1 ap1"),
		"two zones of us, two of eu, ap": sites("us1 us2 eu1 eu2 ap1"),
		"us, eu, ap, sa, af (sa 120 ms from us and 190 from eu, af 220 and 140": sites("us1 eu1 ap1 sa1 af1"),
	} {
		line := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(row) + `.*$`).FindString(string(text))
		cells := strings.Split(line, " | ")
		if len(cells) < 5 {
			t.Errorf("no row %q", row)
			continue
		}
		puts, gets := map[string]string{}, map[string]string{}
		for _, region := range []string{"us", "eu", "ap", "sa", "af"} {
			put, get := cost(voters, site{region, region + "1"})
			puts[region], gets[region] = fmt.Sprintf("%.0f", put), fmt.Sprintf("%.0f", get)
		}
		for i, of := range []map[string]string{puts, gets} {
			want := of["us"] + " / " + of["eu"] + " / " + of["ap"] + " ms"
			if strings.Contains(row, "sa") {
				want += "; sa " + of["sa"] + ", af " + of["af"]
			}
			if got := cells[1+i]; got != want {
				t.Errorf("%s: the page says %q, the formula %q", row, got, want)
			}
		}
	}
}
