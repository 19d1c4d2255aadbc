package playground

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/logmirror/logmirror/internal/wan"
)

func TestParseRoundTrips(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		text    string
		regions string
		want    map[wan.Pair]time.Duration
		err     string
	}{
		{text: "", regions: "us,eu", want: map[wan.Pair]time.Duration{{A: "eu", B: "us"}: 80 * ms}},
		{text: "", regions: "a,b", want: map[wan.Pair]time.Duration{}},
		{text: "us-eu=1s, b-us=0s", regions: "us,eu,b", want: map[wan.Pair]time.Duration{
			{A: "eu", B: "us"}: time.Second, {A: "b", B: "us"}: 0,
		}},
		{text: "ap-eu=5ms", regions: "us,eu,ap", want: map[wan.Pair]time.Duration{
			{A: "eu", B: "us"}: 80 * ms, {A: "ap", B: "us"}: 150 * ms, {A: "ap", B: "eu"}: 5 * ms,
		}},
		{text: "us-east-us-west=9ms", regions: "us-east,us-west", want: map[wan.Pair]time.Duration{
			{A: "us-east", B: "us-west"}: 9 * ms,
		}},
		{text: "us-eu=7ms,ap-us=150ms", regions: "us,eu", want: map[wan.Pair]time.Duration{{A: "eu", B: "us"}: 7 * ms}},
		{text: "us-ap=x", regions: "us,eu", err: `"x" is no duration`},
		{text: "a-b-c=1ms", regions: "a,b-c,a-b,c", err: "more than one pair"},
		{text: "us-eu", regions: "us,eu", err: "want REGION-REGION=DURATION"},
		{text: "us-mars=1ms", regions: "us,eu", err: "no pair of two of the regions us,eu"},
		{text: "us-us=1ms", regions: "us,eu", err: "no pair"},
		{text: "us-eu=80", regions: "us,eu", err: `"80" is no duration`},
		{text: "us-eu=-1ms", regions: "us,eu", err: "between 0 and"},
		{text: "us-eu=1h", regions: "us,eu", err: "between 0 and"},
		{text: "us-eu=1ms,eu-us=2ms", regions: "us,eu", err: "named twice"},
	} {
		got, err := ParseRoundTrips(tc.text, strings.Split(tc.regions, ","))
		switch {
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%q: error %v, want one that says %q", tc.text, err, tc.err)
		case tc.err == "" && (err != nil || !maps.Equal(got, tc.want)):
			t.Errorf("%q: %v, %v; want %v", tc.text, got, err, tc.want)
		}
	}
}

func TestParseRegions(t *testing.T) {
	for text, problem := range map[string]string{
		"us":              "",
		"us, eu-west-1":   "",
		"":                "region name",
		"us,,eu":          "region name",
		"us,eu,us":        "named twice",
		"us/../../etc":    "region name",
		"-us":             "region name",
		"a,b,c,d,e,f,g,h": "at most 7",
	} {
		_, err := ParseRegions(text)
		if (err == nil) != (problem == "") || err != nil && !strings.Contains(err.Error(), problem) {
			t.Errorf("%q: error %v, want %q", text, err, problem)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		config  Config
		problem string
	}{
		"no directory":    {Config{}, "no data directory"},
		"leader nowhere":  {Config{DataDir: "x", LeaderRegion: "mars"}, `leader region "mars"`},
		"not on loopback": {Config{DataDir: "x", Listen: "0.0.0.0:2379"}, "not on loopback"},
		"any address":     {Config{DataDir: "x", Listen: ":2379"}, "not on loopback"},
		"no port":         {Config{DataDir: "x", Listen: "127.0.0.1"}, "not host:port"},
		"a port's name":   {Config{DataDir: "x", Listen: "127.0.0.1:http"}, "not a number"},
		"too few ports":   {Config{DataDir: "x", Listen: "127.0.0.1:65534"}, "3 regions need that many ports"},
		"round trip":      {Config{DataDir: "x", RoundTrips: map[wan.Pair]time.Duration{{A: "us", B: "eu"}: -1}}, "must be between"},
	} {
		if _, err := tc.config.withDefaults(); err == nil || !strings.Contains(err.Error(), tc.problem) {
			t.Errorf("%s: error %v, want %q", name, err, tc.problem)
		}
	}
	for _, listen := range []string{"", "127.0.0.1:65533", "localhost:0", "[::1]:2379"} {
		if _, err := (Config{DataDir: "x", Listen: listen}).withDefaults(); err != nil {
			t.Errorf("%q: %v", listen, err)
		}
	}
}
